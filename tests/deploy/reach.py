"""Who may reach whom by the NetworkPolicies: as Kubernetes reads them, without a network."""

MONITORING = {"memopod.io/monitoring": "true"}


def matches(selector, labels):
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or ():
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def peers_with(peers, pod, namespace, home):
    """Whether a Pod (labels, labels of its namespace, whether it is at home) is one of the peers."""
    for peer in peers:
        assert set(peer) <= {"podSelector", "namespaceSelector"}, peer
        if "namespaceSelector" in peer:
            if not matches(peer["namespaceSelector"], namespace):
                continue
        elif not home:
            continue
        if matches(peer.get("podSelector") or {}, pod):
            return True
    return False


def ports_of(rule, container_ports):
    """Port numbers that a rule names (names are the target's); None for all."""
    if not rule.get("ports"):
        return None
    return {container_ports.get(port["port"], port["port"]) for port in rule["ports"]}


def may(policies, direction, labels, peer, port, container_ports):
    """Whether the policies of a Pod let it `ingress` from, or `egress` to, `peer` at `port`.

    `peer` is (labels, labels of its namespace, at home), or None for an address outside of the cluster.
    """
    selected = [p["spec"] for p in policies if matches(p["spec"]["podSelector"], labels)]
    selected = [spec for spec in selected if direction.capitalize() in spec["policyTypes"]]
    if not selected:
        return True
    side = {"ingress": "from", "egress": "to"}[direction]
    for spec in selected:
        for rule in spec.get(direction) or ():
            ports = ports_of(rule, container_ports)
            if ports is not None and port not in ports:
                continue
            if side not in rule or (peer is not None and peers_with(rule[side], *peer)):
                return True
    return False
