"""The Helm chart: linted and rendered by Helm, held against Kubernetes' schemas and the program."""

import json
from collections.abc import Iterator
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from typer.main import get_command

from bss_stream.cli.main import app
from bss_stream.config import Config
from bss_stream.roles import ROLES
from bss_stream.topics import SIGNALS
from tests.deploy.tools import ROOT, go_tool

CHART: Final = ROOT / "deploy" / "helm" / "bss-stream"
KUBERNETES: Final = ("1.30", "1.37")
"""The versions that the manifests must be good for."""

NO_SCHEMA: Final = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
"""Not of Kubernetes itself."""

PLAIN: Final = ("kafka.securityProtocol=PLAINTEXT", "mqtt.tls=false", "mqtt.secret=", "ca.secret=")
ODOO: Final = ("odoo.url=https://odoo.example.net", "odoo.database=bss", "odoo.username=bss")
VARIANTS: Final = {
    "as it is": (),
    "without encryption": PLAIN,
    "only the broker encrypted": ("kafka.securityProtocol=PLAINTEXT",),
    "client certificates' authority known to the system": ("ca.secret=",),
    "scaled by Kubernetes": ("autoscaling.kind=hpa", "autoscaling.hpa.matchLabels.app=bss"),
    "scaled by KEDA": ("autoscaling.kind=keda", "autoscaling.maxReplicas=6"),
    "scaled by KEDA without users": ("autoscaling.kind=keda", *PLAIN),
    "with Odoo": ODOO,
    "without policies": ("networkPolicy.enabled=false",),
    "with the operator": (
        "serviceMonitor.enabled=true",
        "serviceMonitor.labels.of=ours",
    ),
    "with settings": (
        'settings.BSS_ENGINE__THREADS="2"',
        'roles.processor.settings.BSS_PROCESSOR__BATCH_RECORDS_MAX="1000"',
    ),
}

Manifest = dict[str, Any]


def helm(command: str, *values: str) -> tuple[int, str, str]:
    options = [option for value in values for option in ("--set-json", as_json(value))]
    name = ["bss"] if command == "template" else []
    done = go_tool("helm", command, *name, CHART, "--kube-version", f"{KUBERNETES[0]}.0", *options)
    return done.returncode, done.stdout, done.stderr


def as_json(value: str) -> str:
    """`path=text`, its text in quotes unless it is JSON already."""
    path, _, text = value.partition("=")
    try:
        json.loads(text)
    except ValueError:
        text = json.dumps(text)
    return f"{path}={text}"


def render(*values: str) -> list[Manifest]:
    code, text, error = helm("template", *values)
    assert code == 0, error
    return [one for one in yaml.safe_load_all(text) if one]


def fails(*values: str) -> str:
    code, _, error = helm("template", *values)
    assert code != 0
    return error


@pytest.fixture(scope="module", params=[*VARIANTS.values()], ids=[*VARIANTS])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(*request.param)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    """StatefulSets and Deployments by their role."""
    found = of_kind(manifests, "StatefulSet", "Deployment")
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in found}


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def environment(manifests: list[Manifest], workload: Manifest) -> dict[str, str]:
    """What a role's process finds in its environment."""
    (config,) = of_kind(manifests, "ConfigMap")
    (container,) = pod(workload)["containers"]
    given: dict[str, str] = dict(config["data"])
    for one in container["env"]:
        given[one["name"]] = one.get("value", "a-pod-0")
    return given


def projected(workload: Manifest) -> Iterator[tuple[str, str, str]]:
    """(Secret, key, file) of each of a role's secrets."""
    for volume in pod(workload)["volumes"] or ():
        for source in volume.get("projected", {}).get("sources", ()):
            for item in source["secret"]["items"]:
                yield source["secret"]["name"], item["key"], item["path"]


def test_the_linter_finds_nothing() -> None:
    code, out, error = helm("lint")
    assert code == 0, out + error
    assert "WARNING" not in out
    assert "ERROR" not in out


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_would_take_the_manifests(manifests: list[Manifest], version: str) -> None:
    seen = 0
    for one in manifests:
        if one["apiVersion"] not in NO_SCHEMA:
            kubernetes_validate.validate(one, version, strict=True)
            seen += 1
    assert seen > 10


def test_the_schemas_refuse_what_kubernetes_does_not_know() -> None:
    (workload, *_) = workloads(render()).values()
    pod(workload)["securityContext"]["runAsNobody"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(workload, KUBERNETES[1], strict=True)


def test_every_role_s_settings_are_settings_of_the_program(manifests: list[Manifest]) -> None:
    found = workloads(manifests)
    assert set(found) | {"odoo"} == set(ROLES)
    for role, workload in found.items():
        config = Config.load(env=environment(manifests, workload))
        assert config.log.backend == "kafka", role
        assert not config.mqtt.embedded, role
        assert (config.sink.backend == "postgres") == (role in ("sink", "queries")), role


def test_every_command_is_one(manifests: list[Manifest]) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for workload in workloads(manifests).values():
        (container,) = pod(workload)["containers"]
        name, *arguments = container["args"]
        commands[name].make_context(name, list(arguments))
        assert arguments == ["--instance", "$(POD_NAME)"]


def test_a_role_has_the_secrets_that_it_reads_and_no_others(manifests: list[Manifest]) -> None:
    for role, workload in workloads(manifests).items():
        given = {f"/etc/bss/secrets/{path}" for _, _, path in projected(workload)}
        named = environment(manifests, workload).items()
        read = {value for _, value in named if value.startswith("/etc/bss/secrets/")}
        ca = {file for file in read if file.endswith("ca.pem")}
        assert given - ca == read - ca, role
        assert all(key == role for _, key, path in projected(workload) if path != "ca.pem")


def test_probes_ask_where_the_program_answers(manifests: list[Manifest]) -> None:
    for role, workload in workloads(manifests).items():
        config = Config.load(env=environment(manifests, workload))
        (container,) = pod(workload)["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports[container["livenessProbe"]["httpGet"]["port"]] == config.http.port, role
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
        assert config.http.host == "0.0.0.0"
    for one in of_kind(manifests, "ServiceMonitor"):
        wanted = one["spec"]["selector"]["matchLabels"]
        services = of_kind(manifests, "Service")
        assert len(services) == len(ROLES) - 1
        for service in services:
            assert wanted.items() <= service["metadata"]["labels"].items()
            assert service["spec"]["ports"][0]["name"] == one["spec"]["endpoints"][0]["port"]


def test_names_stay_where_something_is_found_again_by_them(manifests: list[Manifest]) -> None:
    kinds = {role: one["kind"] for role, one in workloads(manifests).items()}
    assert kinds.pop("queries") == "Deployment"
    assert set(kinds.values()) == {"StatefulSet"}
    processor = workloads(manifests)["processor"]
    (claim,) = processor["spec"]["volumeClaimTemplates"]
    (container,) = pod(processor)["containers"]
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    env = environment(manifests, processor) | {"BSS_DATA_DIR": "/var/lib/bss"}
    place = Config.load(env=env).checkpoint_directory
    assert place.is_relative_to(mounted[claim["metadata"]["name"]])


def test_no_more_processors_than_partitions(manifests: list[Manifest]) -> None:
    partitions = Config.load(env=environment(manifests, workloads(manifests)["sink"])).partitions
    scalers = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    for one in scalers:
        assert one["spec"].get("maxReplicas", one["spec"].get("maxReplicaCount")) <= partitions
        assert one["spec"]["scaleTargetRef"]["name"] == "bss-processor"
    spec = workloads(manifests)["processor"]["spec"]
    assert ("replicas" in spec) == (not scalers)


def test_what_cannot_be_is_refused() -> None:
    refused = "expected at most partitions, 2"
    assert refused in fails("partitions=2")
    more = ("partitions=2", "roles.processor.replicas=2")
    assert refused in fails(*more, "autoscaling.kind=hpa")
    assert render(*more)
    assert "minReplicas: 5: expected at most maxReplicas, 3" in fails(
        "autoscaling.kind=keda", "autoscaling.minReplicas=5", "autoscaling.maxReplicas=3"
    )
    assert "kind" in fails("autoscaling.kind=nomad")
    assert "colour" in fails("colour=red")
    assert "BSE_PARTITIONS" in fails("settings.BSE_PARTITIONS=x")


def test_keda_asks_for_the_lag_of_what_processors_read() -> None:
    for prefix in ("", "kampala."):
        manifests = render("autoscaling.kind=keda", f"kafka.topicPrefix={prefix}")
        (scaler,) = of_kind(manifests, "ScaledObject")
        triggers = [one["metadata"] for one in scaler["spec"]["triggers"]]
        assert {one["topic"] for one in triggers} == {prefix + topic for topic in SIGNALS}
        config = Config.load(env=environment(manifests, workloads(manifests)["processor"]))
        assert {one["consumerGroup"] for one in triggers} == {prefix + config.group("processor")}


def test_pods_can_do_little(manifests: list[Manifest]) -> None:
    for role, workload in workloads(manifests).items():
        spec = pod(workload)
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"], role
        assert not spec["automountServiceAccountToken"], role
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"], role
        assert container["resources"]["requests"], role
        config = Config.load(env=environment(manifests, workload))
        assert spec["terminationGracePeriodSeconds"] * 1000 > 2 * config.log.kafka.commit_timeout_ms


def test_services_budgets_and_policies_select_a_role_s_pods(manifests: list[Manifest]) -> None:
    pods = {
        role: one["spec"]["template"]["metadata"]["labels"]
        for role, one in workloads(manifests).items()
    }
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for one in of_kind(manifests, kind):
            spec = one["spec"]
            if kind == "Service":
                wanted = spec["selector"]
            else:
                wanted = spec["selector" if "selector" in spec else "podSelector"]["matchLabels"]
            role = one["metadata"]["labels"]["app.kubernetes.io/component"]
            chosen = [name for name, labels in pods.items() if wanted.items() <= labels.items()]
            assert chosen == [role], kind


def test_a_policy_lets_a_role_reach_its_servers_alone() -> None:
    policies = of_kind(render("networkPolicy.otherPorts=[4318]", *ODOO), "NetworkPolicy")
    open_to = {
        one["metadata"]["name"].removeprefix("bss-"): {
            port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]
        }
        for one in policies
    }
    assert open_to == {
        "bridge": {53, 4318, 9093, 8883},
        "processor": {53, 4318, 9093},
        "publisher": {53, 4318, 9093, 8883},
        "sink": {53, 4318, 9093, 5432},
        "queries": {53, 4318, 8883, 5432},
        "odoo": {53, 4318, 9093, 8883, 443},
    }
