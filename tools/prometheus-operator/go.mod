// Where tests find the kinds of Prometheus' operator: its module holds their CustomResourceDefinitions.
module memopod.io/tools/prometheus-operator

go 1.24

require github.com/prometheus-operator/prometheus-operator v0.85.0
