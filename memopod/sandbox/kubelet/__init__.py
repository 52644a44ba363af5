"""A kubelet whose containers are local processes.

It binds every Pod without gates to the node `sandbox`, runs the Pod's `main` container as a process
with the Pod's folder in place of `/memopod/`, and does what Argo's executor does around it: fetch
input artifacts, collect outputs, write the WorkflowTaskResult. Phases and container statuses are
reported as Kubernetes reports them. No image is pulled and nothing is isolated.
"""
