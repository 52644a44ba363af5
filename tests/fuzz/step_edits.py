"""Edits of a Pod, as Argo, a user or a webhook would make them; the catalogues are made of these."""

import json

from memopod.steps.argo import containers
from memopod.steps.argo import main_container as main

MISFITS = (KeyError, IndexError, TypeError, AttributeError, ValueError)
USERS_TOKENS = ("kube-api-access-mine", "kube-api-access-own")
"""Volumes of the catalogue that a user named as the API server names its own."""
ODD_VALUES = [
    *(1, True, "1", 1.0, None, "", [], {}, [[]], [""], [1, 2], ["1,2"], "null", "\ud800", "\u0000", 10**30),
    *({"a": 1}, {"a": [1]}, {"a": {}}, 1e300, -0.0, 0, False, "é", "e\u0301", '"', "\\", '{"a":1}'),
]


def any_value(n):
    return ODD_VALUES[n % 97] if n % 97 < len(ODD_VALUES) else {f"field-{n % 5}": f"value-{n}"}


def template(pod, change):
    """Change the template as Argo would have written it."""
    for container in containers(pod):
        for variable in container.get("env") or ():
            if variable["name"] == "ARGO_TEMPLATE":
                value = json.loads(variable["value"])
                change(value)
                variable["value"] = json.dumps(value)


def set_env(pod, name, value):
    # In its place, if it is there: the order of a user's variables is part of what a step does.
    env = main(pod).setdefault("env", [])
    position = next((i for i, variable in enumerate(env) if variable["name"] == name), len(env))
    env[position : position + 1] = [{"name": name, **value}]


def volume(pod, source, name="extra", **mount):
    unmount(pod, name)
    pod["spec"]["volumes"].append({"name": name, **source})
    main(pod)["volumeMounts"].append({"name": name, "mountPath": "/extra", **mount})


def unmount(pod, name):
    pod["spec"]["volumes"] = [v for v in pod["spec"]["volumes"] if v["name"] != name]
    main(pod)["volumeMounts"] = [m for m in main(pod)["volumeMounts"] if m["name"] != name]


def add_input(pod, parameter):
    # Added and not set: what the template had stays, and with it the difference from other recordings.
    template(pod, lambda t: t["inputs"].setdefault("parameters", []).append(parameter))


def add_artifact(pod, side, artifact):
    template(pod, lambda t: t[side].setdefault("artifacts", []).append({"name": "a", **artifact}))


def emissary(pod):
    """The emissary's command line in front of the step's own command."""
    command = main(pod)["command"]
    if command[1:3] != ["emissary", "--loglevel"]:
        raise ValueError("the Pod's main container is not wrapped by an emissary with a log level")
    return command


def argos_containers(pod):
    return [
        c
        for c in containers(pod)
        if c["name"] in ("init", "wait", "supervisor") and c["command"][0] != "sleep"
    ]


def rename_token_volume(pod, n):
    held = [pod["spec"]["volumes"], *(c.get("volumeMounts") or () for c in containers(pod))]
    for named in (item for items in held for item in items):
        if named["name"].startswith("kube-api-access-") and named["name"] not in USERS_TOKENS:
            named["name"] = f"kube-api-access-{n}"


def rename_pod(pod, n):
    """Argo names the ConfigMap with what it offloads after the Pod."""
    old, pod["metadata"]["name"] = pod["metadata"]["name"], f"other-pod-{n}"
    for held in pod["spec"]["volumes"]:
        if held.get("configMap", {}).get("name") == old:
            held["configMap"]["name"] = pod["metadata"]["name"]


def container_of_set(pod, change):
    template(pod, lambda t: change(t["containerSet"]))


def script(pod, change):
    template(pod, lambda t: change(t["script"]))


def init_pair(pod, n):
    """Two init containers, in an order that says which of them sees what the other wrote."""
    pair = [{"name": "left", "image": "b"}, {"name": "right", "image": "b"}]
    pod["spec"]["initContainers"] += pair if n % 2 else pair[::-1]


def duplicated_variable(pod, n):
    """One name twice: the last one wins, so their order counts."""
    values = ["a", "b"] if n % 2 else ["b", "a"]
    main(pod)["env"] = [*(main(pod).get("env") or ()), *({"name": "TWICE", "value": v} for v in values)]


def resource_read(pod, n):
    """Of a container that no other change knows: else its resources would count from then on."""
    limits = {"limits": {"cpu": f"{2 + n}"}}
    pod["spec"]["containers"].append({"name": f"measured-{n}", "image": "m", "resources": limits})
    reference = {"containerName": f"measured-{n}", "resource": "limits.cpu"}
    set_env(pod, "CPUS", {"valueFrom": {"resourceFieldRef": reference}})


def projected(*sources):
    return {"projected": {"sources": list(sources)}}
