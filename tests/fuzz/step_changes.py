"""Changes of a Pod: those that can decide what its step computes, and those that cannot.

Each takes the Pod and a number; another number gives another change of that kind. One that does not fit
a Pod (a script has no `container`) raises one of MISFITS.
"""

import random

from step_edits import (
    MISFITS,
    add_artifact,
    add_input,
    any_value,
    argos_containers,
    container_of_set,
    duplicated_variable,
    emissary,
    init_pair,
    main,
    projected,
    rename_pod,
    rename_token_volume,
    resource_read,
    script,
    set_env,
    template,
    volume,
)

from memopod.steps import names

__all__ = ["MISFITS", "NOT_SEMANTIC", "SEMANTIC"]


# Fields as the Kubernetes and Argo APIs have them, but for those that a rule names: whichever it is, it
# counts, and so does one that comes next year.
CONTAINER_FIELDS = [
    *("imagePullPolicy", "lifecycle", "livenessProbe", "ports", "readinessProbe", "restartPolicy"),
    *("startupProbe", "stdin", "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty"),
]
POD_FIELDS = [
    *("automountServiceAccountToken", "dnsPolicy", "enableServiceLinks", "ephemeralContainers", "hostIPC"),
    *("hostPID", "hostUsers", "hostname", "os", "readinessGates", "resourceClaims", "restartPolicy"),
    *("setHostnameAsFQDN", "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds"),
]
TEMPLATE_FIELDS = [
    *("activeDeadline", "annotations", "automountServiceAccountToken", "data", "executor", "failFast"),
    *("hostAliases", "initContainers2", "parallelism", "plugin", "securityContext", "serviceAccountName"),
    *("inputs.parameters", "inputs\\.artifacts", "offloaded"),
]


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
    **{
        f"field {field} of the container": lambda p, n=0, field=field: main(p).update({field: f"v{n}"})
        for field in CONTAINER_FIELDS
    },
    **{
        f"field {field} of the Pod": lambda p, n=0, field=field: p["spec"].update({field: f"v{n}"})
        for field in POD_FIELDS
    },
    **{
        f"field {field} of the template": lambda p, n=0, field=field: template(
            p, lambda t: t.update({field: f"v{n}"})
        )
        for field in TEMPLATE_FIELDS
    },
    "order of init containers": lambda p, n=0: init_pair(p, n),
    "order of a variable that is set twice": lambda p, n=0: duplicated_variable(p, n),
    "a variable made of others": lambda p, n=0: set_env(p, "V", {"value": f"$(ARGO_POD_NAME)-{n}"}),
    "environment from a file": lambda p, n=0: set_env(
        p, "F", {"valueFrom": {"fileKeyRef": {"volumeName": "extra-path", "path": f"p{n}", "key": "k"}}}
    ),
    "a resource that the step reads": lambda p, n=0: resource_read(p, n),
    "an annotation that the step reads": lambda p, n=0: (
        p["metadata"]["annotations"].update(shard=f"{n}"),
        set_env(p, "SHARD", {"valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['shard']"}}}),
    ),
    "a label of Argo's that the step reads": lambda p, n=0: (
        p["metadata"]["labels"].update({"workflows.argoproj.io/creator": f"user-{n}"}),
        set_env(
            p,
            "WHO",
            {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['workflows.argoproj.io/creator']"}}},
        ),
    ),
    "a label that the step reads in a file": lambda p, n=0: (
        p["metadata"]["labels"].update(cohort=f"c{n}"),
        volume(
            p,
            projected(
                {
                    "downwardAPI": {
                        "items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels['cohort']"}}]
                    }
                }
            ),
            "extra-labels",
        ),
    ),
    "a projected ConfigMap": lambda p, n=0: volume(
        p, projected({"configMap": {"name": f"c{n}"}}), "extra-projected"
    ),
    "a projected Secret": lambda p, n=0: volume(
        p, projected({"secret": {"name": f"s{n}"}}), "extra-projected"
    ),
    "a token for somebody": lambda p, n=0: volume(
        p, projected({"serviceAccountToken": {"audience": f"a{n}", "path": "t"}}), "kube-api-access-mine"
    ),
    "a ConfigMap beside a token": lambda p, n=0: volume(
        p,
        projected({"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": f"c{n}"}}),
        "kube-api-access-own",
    ),
    "keys of a mounted ConfigMap": lambda p, n=0: volume(
        p, {"configMap": {"name": "c", "items": [{"key": f"k{n}", "path": "p"}]}}, "extra-keys"
    ),
    "mode of a mounted Secret": lambda p, n=0: volume(
        p, {"secret": {"secretName": "s", "defaultMode": 256 + n}}, "extra-mode"
    ),
    "an input artifact mounted once more": lambda p, n=0: main(p).update(
        volumeMounts=[
            *main(p)["volumeMounts"],
            {"name": "input-artifacts", "mountPath": "/again", "subPath": f"x{n}"},
        ]
    ),
    "whether a mount can be written": lambda p, n=0: volume(
        p, {"emptyDir": {}}, "extra-read", readOnly=True, recursiveReadOnly=f"v{n}"
    ),
    "a block device": lambda p, n=0: main(p).update(
        volumeDevices=[{"name": "var-run-argo-block", "devicePath": f"/dev/x{n}"}]
    ),
    "command of a sidecar": lambda p, n=0: p["spec"]["containers"].append(
        {"name": "helper", "image": "h", "command": ["/var/run/argo/argoexec", "emissary", "--", f"s{n}"]}
    ),
    "environment of an init container": lambda p, n=0: p["spec"]["initContainers"].append(
        {"name": "prepare", "image": "b", "env": [{"name": "E", "value": f"{n}"}]}
    ),
    "variable of the template only": lambda p, n=0: template(
        p, lambda t: t["container"].update(env=[{"name": "TRACEPARENT", "value": f"{n}"}])
    ),
    "volume mount of the template only": lambda p, n=0: template(
        p, lambda t: t["container"].update(volumeMounts=[{"name": "v", "mountPath": f"/m{n}"}])
    ),
    "archive of an input": lambda p, n=0: add_artifact(
        p, "inputs", {"path": "/a", "s3": {"key": "k"}, "archive": {"none": {}}, "mode": n}
    ),
    "mode of an output": lambda p, n=0: add_artifact(p, "outputs", {"path": "/a", "mode": n}),
    "global name of an artifact": lambda p, n=0: add_artifact(
        p, "outputs", {"path": "/a", "globalName": f"g{n}"}
    ),
    "garbage collection of an output": lambda p, n=0: add_artifact(
        p, "outputs", {"path": "/a", "artifactGC": {"strategy": f"Never{n}"}}
    ),
    "path of an output parameter": lambda p, n=0: template(
        p, lambda t: t["outputs"]["parameters"][0]["valueFrom"].update(path=f"/p{n}")
    ),
    "another output parameter": lambda p, n=0: template(
        p,
        lambda t: t["outputs"]["parameters"].append({"name": f"more{n}", "valueFrom": {"path": "/p"}}),
    ),
    "source of a recorded script": lambda p, n=0: script(p, lambda s: s.update(source=f"print({n})")),
    "a field of a recorded script": lambda p, n=0: script(p, lambda s: s.update(novelty=any_value(n))),
    "graph of a container set": lambda p, n=0: container_of_set(
        p, lambda s: s["containers"][-1].update(dependencies=[f"other-{n}"])
    ),
    "mounts of a container set": lambda p, n=0: container_of_set(
        p, lambda s: s.update(volumeMounts=[{"name": "v", "mountPath": f"/m{n}"}])
    ),
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
    "who collects an input artifact": lambda p, n=0: template(
        p, lambda t: t["inputs"]["artifacts"][0].update(artifactGC={"strategy": f"s{n}"}, deleted=n % 2 == 0)
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
    "pending timeout": lambda p, n=0: template(p, lambda t: t.update(pendingTimeout=f"{n}m")),
    "priority in the template": lambda p, n=0: template(p, lambda t: t.update(priorityClassName=f"p{n}")),
    "scheduler in the template": lambda p, n=0: template(p, lambda t: t.update(schedulerName=f"s{n}")),
    "retries of a container set": lambda p, n=0: container_of_set(
        p, lambda s: s.update(retryStrategy={"retries": n})
    ),
    "resize policy": lambda p, n=0: main(p).update(resizePolicy=[{"resourceName": f"r{n}"}]),
    "overhead": lambda p, n=0: p["spec"].update(overhead={"cpu": f"{n}"}),
    "finalizers": lambda p, n=0: p["metadata"].update(finalizers=[f"example.com/f{n}"]),
    "managed fields": lambda p, n=0: p["metadata"].update(managedFields=[{"manager": f"m{n}"}]),
    "generation": lambda p, n=0: p["metadata"].update(generation=n, resourceVersion=f"{n}"),
    "Pod UID and creation": lambda p, n=0: p["metadata"].update(
        uid=f"u{n}", creationTimestamp="2026-01-01T00:00:00Z"
    ),
    "run id of Kubeflow": lambda p, n=0: p["metadata"]["labels"].update({"pipeline/runid": f"r{n}"}),
    "how far Argo is": lambda p, n=0: p["metadata"]["labels"].update({names.ARGO_COMPLETED: f"{n}"}),
    "resources of Argo's containers": lambda p, n=0: [
        c.update(resources={"limits": {"cpu": f"{n}"}}) for c in argos_containers(p)
    ],
    "environment of Argo's containers": lambda p, n=0: [
        c["env"].append({"name": f"X{n}", "value": "y"}) for c in argos_containers(p)
    ],
    "how old an entry may be": lambda p, n=0: p["metadata"]["annotations"].update(
        {names.MAX_STALENESS: f"P{n}D"}
    ),
    "status": lambda p, n=0: p.update(status={"phase": "Running", "podIP": f"10.0.0.{n}"}),
}
