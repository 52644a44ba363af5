"""Changes of a Pod: those that can decide what its step computes, and those that cannot.

Each takes the Pod and a number; another number gives another change of that kind. One that does not fit
a Pod (a script has no `container`) raises one of MISFITS.
"""

import json
import random

from memopod.steps import names
from memopod.steps.argo import containers
from memopod.steps.argo import main_container as main

MISFITS = (KeyError, IndexError, TypeError, AttributeError, ValueError)
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
    env = [v for v in main(pod).get("env") or () if v["name"] != name]
    main(pod)["env"] = [*env, {"name": name, **value}]


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
        if named["name"].startswith("kube-api-access-"):
            named["name"] = f"kube-api-access-{n}"


def rename_pod(pod, n):
    """Argo names the ConfigMap with what it offloads after the Pod."""
    old, pod["metadata"]["name"] = pod["metadata"]["name"], f"other-pod-{n}"
    for held in pod["spec"]["volumes"]:
        if held.get("configMap", {}).get("name") == old:
            held["configMap"]["name"] = pod["metadata"]["name"]


SEMANTIC = {
    "image": lambda p, n=0: main(p).update(image=f"python:3.{n}"),
    "image of the template only": lambda p, n=0: template(p, lambda t: t["container"].update(image=f"x{n}")),
    "image of the Pod only (podSpecPatch)": lambda p, n=0: main(p).update(image=f"patched:{n}"),
    "command": lambda p, n=0: main(p)["command"].append(f"--more={n}"),
    "args": lambda p, n=0: main(p).update(args=[f"--more={n}"]),
    "number of arguments": lambda p, n=0: main(p).update(args=["--more", *("=" * (n % 3)), str(n)]),
    "an empty argument": lambda p, n=0: main(p).update(args=[""] * (n % 3 + 1)),
    "working directory": lambda p, n=0: main(p).update(workingDir=f"/elsewhere/{n}"),
    "literal environment": lambda p, n=0: set_env(p, f"MODE_{n % 3}", {"value": f"fast-{n}"}),
    "a variable of the user that is named as Argo's": lambda p, n=0: set_env(
        p, "ARGO_MODE", {"value": f"{n}"}
    ),
    "environment from a Secret": lambda p, n=0: set_env(
        p, "T", {"valueFrom": {"secretKeyRef": {"name": f"s{n}", "key": "k"}}}
    ),
    "environment from a ConfigMap": lambda p, n=0: set_env(
        p, "C", {"valueFrom": {"configMapKeyRef": {"name": f"c{n}", "key": "k"}}}
    ),
    "environment from the run's name": lambda p, n=0: set_env(
        p, f"N{n}", {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ),
    "all of a Secret": lambda p, n=0: main(p).update(envFrom=[{"secretRef": {"name": f"s{n}"}}]),
    "all of a ConfigMap": lambda p, n=0: main(p).update(envFrom=[{"configMapRef": {"name": f"c{n}"}}]),
    "prefix of envFrom": lambda p, n=0: main(p).update(
        envFrom=[{"prefix": f"A{n}_", "secretRef": {"name": "s"}}]
    ),
    "whether the result is taken": lambda p, n=0: set_env(p, names.ENV_INCLUDE_RESULT, {"value": "true"}),
    "user of the container": lambda p, n=0: main(p).update(securityContext={"runAsUser": 1000 + n}),
    "user of the Pod": lambda p, n=0: p["spec"].update(securityContext={"runAsUser": 1000 + n}),
    "service account": lambda p, n=0: p["spec"].update(serviceAccountName=f"other-{n}"),
    "host network": lambda p, n=0: p["spec"].update(hostNetwork=True),
    "host aliases": lambda p, n=0: p["spec"].update(
        hostAliases=[{"ip": "10.0.0.1", "hostnames": [f"db{n}"]}]
    ),
    "DNS": lambda p, n=0: p["spec"].update(dnsPolicy="None", dnsConfig={"nameservers": [f"10.0.0.{n}"]}),
    "runtime class": lambda p, n=0: p["spec"].update(runtimeClassName=f"gvisor-{n}"),
    "image pull secrets": lambda p, n=0: p["spec"].update(imagePullSecrets=[{"name": f"r{n}"}]),
    "a Secret mounted": lambda p, n=0: volume(p, {"secret": {"secretName": f"s{n}"}}, "extra-secret"),
    "a ConfigMap mounted": lambda p, n=0: volume(p, {"configMap": {"name": f"c{n}"}}, "extra-config"),
    "an empty folder mounted": lambda p, n=0: volume(p, {"emptyDir": {}}, f"extra-{n % 4}"),
    "an image mounted": lambda p, n=0: volume(p, {"image": {"reference": f"data:{n}"}}, "extra-image"),
    "path of a mount": lambda p, n=0: volume(p, {"emptyDir": {}}, "extra-path", mountPath=f"/b/{n}"),
    "subPath of a mount": lambda p, n=0: volume(p, {"emptyDir": {}}, "extra-path", subPath=f"x{n}"),
    "a sidecar": lambda p, n=0: p["spec"]["containers"].append(
        {"name": f"proxy-{n % 3}", "image": f"nginx:{n}"}
    ),
    "an init container": lambda p, n=0: p["spec"]["initContainers"].append(
        {"name": f"prep-{n % 3}", "image": f"b:{n}"}
    ),
    "a container that only calls itself wait": lambda p, n=0: p["spec"]["containers"].append(
        {"name": "wait", "image": f"mine:{n}", "command": ["sleep"]}
    ),
    "name of an input parameter": lambda p, n=0: add_input(p, {"name": f"a{n}"}),
    "value of an input parameter": lambda p, n=0: add_input(p, {"name": "a", "value": any_value(n)}),
    "a raw artifact": lambda p, n=0: add_artifact(p, "inputs", {"path": "/a", "raw": {"data": f"1{n}"}}),
    "path of an input artifact": lambda p, n=0: add_artifact(
        p, "inputs", {"path": f"/a/{n}", "s3": {"key": "k"}}
    ),
    "an output artifact": lambda p, n=0: add_artifact(p, "outputs", {"path": f"/a/{n}"}),
    "key of an output": lambda p, n=0: add_artifact(p, "outputs", {"path": "/a", "s3": {"key": f"k{n}"}}),
    "archive of an output": lambda p, n=0: add_artifact(
        p, "outputs", {"path": "/a", "archive": {"none": {}} if n == 0 else {"tar": {"compressionLevel": n}}}
    ),
    "an optional output": lambda p, n=0: add_artifact(p, "outputs", {"path": "/a", "optional": True}),
    "global name of an output": lambda p, n=0: template(
        p, lambda t: t["outputs"]["parameters"][0].update(globalName=f"g{n}")
    ),
    "default of an output": lambda p, n=0: template(
        p, lambda t: t["outputs"]["parameters"][0]["valueFrom"].update(default=any_value(n))
    ),
    "script source": lambda p, n=0: template(
        p, lambda t: t.update(script={"source": f"print({n})", "image": "i"})
    ),
    "executor": lambda p, n=0: template(p, lambda t: t.update(executor={"serviceAccountName": f"x{n}"})),
    "a template field that nobody knows yet": lambda p, n=0: template(
        p, lambda t: t.update({f"novelty{n % 2}": any_value(n)})
    ),
    "a Pod field that nobody knows yet": lambda p, n=0: p["spec"].update({f"novelty{n % 2}": any_value(n)}),
    "a container field that nobody knows yet": lambda p, n=0: main(p).update(novelty=any_value(n)),
    "salt": lambda p, n=0: p["metadata"]["annotations"].update({names.SALT: f"{n}."}),
    "a label that the step reads": lambda p, n=0: (
        p["metadata"]["labels"].update(team=f"a{n}"),
        set_env(p, "TEAM", {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['team']"}}}),
    ),
}

NOT_SEMANTIC = {
    "Pod name": lambda p, n=0: rename_pod(p, n),
    "node id": lambda p, n=0: p["metadata"]["annotations"].update({names.ARGO_NODE_ID: f"other-{n}"}),
    "trace ids": lambda p, n=0: p["metadata"]["annotations"].update(
        {"workflows.argoproj.io/trace-id": f"{n}"}
    ),
    "trace context": lambda p, n=0: set_env(p, "TRACEPARENT", {"value": f"00-{n}"}),
    "trace state": lambda p, n=0: set_env(p, "TRACESTATE", {"value": f"x{n}"}),
    "Argo's environment": lambda p, n=0: set_env(p, "ARGO_NODE_ID", {"value": f"other-{n}"}),
    "Argo's deadline": lambda p, n=0: set_env(p, "ARGO_DEADLINE", {"value": f"{2030 + n}-01-01T00:00:00Z"}),
    "resources": lambda p, n=0: main(p).update(resources={"limits": {"cpu": f"{4 + n}"}}),
    "resources of the Pod": lambda p, n=0: p["spec"].update(resources={"limits": {"cpu": f"{4 + n}"}}),
    "resources of the template": lambda p, n=0: template(
        p, lambda t: t["container"].update(resources={"limits": {"cpu": f"{4 + n}"}})
    ),
    "node selector": lambda p, n=0: p["spec"].update(nodeSelector={"gpu": f"a{n}"}),
    "tolerations": lambda p, n=0: p["spec"].update(tolerations=[{"key": f"k{n}"}] if n else []),
    "affinity": lambda p, n=0: p["spec"].update(affinity={"nodeAffinity": {"novelty": n}}),
    "topology": lambda p, n=0: p["spec"].update(topologySpreadConstraints=[{"maxSkew": 1 + n}]),
    "priority": lambda p, n=0: p["spec"].update(priority=1000 + n, priorityClassName=f"high-{n}"),
    "scheduler": lambda p, n=0: p["spec"].update(schedulerName=f"volcano-{n}"),
    "deadline": lambda p, n=0: p["spec"].update(activeDeadlineSeconds=60 + n),
    "node": lambda p, n=0: p["spec"].update(nodeName=f"node-{n}"),
    "gates": lambda p, n=0: p["spec"].update(schedulingGates=[{"name": names.GATE}, {"name": f"g{n}"}]),
    "labels": lambda p, n=0: p["metadata"]["labels"].update(unread=f"b{n}"),
    "annotations": lambda p, n=0: p["metadata"]["annotations"].update(note=f"hello {n}"),
    "our own marks": lambda p, n=0: p["metadata"]["annotations"].update({names.KEY: f"{n:064x}"}),
    "owner's UID": lambda p, n=0: p["metadata"]["ownerReferences"][0].update(uid=f"other-uid-{n}"),
    "workflow": lambda p, n=0: p["metadata"]["ownerReferences"][0].update(name=f"other-workflow-{n}"),
    "template name": lambda p, n=0: template(p, lambda t: t.update(name=f"other-{n}")),
    "template metadata": lambda p, n=0: template(
        p, lambda t: t.update(metadata={"labels": {"a": any_value(n)}})
    ),
    "retries": lambda p, n=0: template(p, lambda t: t.update(retryStrategy={"limit": 3 + n})),
    "archive location": lambda p, n=0: template(
        p, lambda t: t.update(archiveLocation={"s3": {"key": f"k{n}"}})
    ),
    "metrics": lambda p, n=0: template(p, lambda t: t.update(metrics={"prometheus": [any_value(n)]})),
    "synchronization": lambda p, n=0: template(
        p, lambda t: t.update(synchronization={"mutex": any_value(n)})
    ),
    "text of podSpecPatch": lambda p, n=0: template(p, lambda t: t.update(podSpecPatch=f'{{"a":{n}}}')),
    "timeout": lambda p, n=0: template(p, lambda t: t.update(timeout=f"{n}m")),
    "placement in the template": lambda p, n=0: template(
        p, lambda t: t.update(nodeSelector={"a": any_value(n)})
    ),
    "log level of the emissary": lambda p, n=0: emissary(p).__setitem__(3, f"debug-{n}"),
    "Argo's image": lambda p, n=0: [c.update(image=f"argoexec:{n}") for c in argos_containers(p)],
    "an unmounted volume": lambda p, n=0: p["spec"]["volumes"].append(
        {"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": "c"}}
    ),
    "order of volumes": lambda p, n=0: random.Random(n).shuffle(p["spec"]["volumes"]),
    "name of the token volume": lambda p, n=0: rename_token_volume(p, n),
    "status": lambda p, n=0: p.update(status={"phase": "Running", "podIP": f"10.0.0.{n}"}),
}
