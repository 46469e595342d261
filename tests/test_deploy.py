"""The files for clusters, held against what reads them: Ray, shells, KubeRay's API, Prometheus."""

import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import urllib.parse
import urllib.request
import zipfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from search.telemetry import exported

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
LAUNCHED = [ROOT / "cluster.yaml", DEPLOY / "gcp.yaml", DEPLOY / "on-premises.yaml"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)

# Of KubeRay's API reference, ray.io/v1 as of 1.6, and of the parts of a pod that the manifest uses.
FIELDS = {
    "RayJobSpec": """activeDeadlineSeconds backoffLimit clusterSelector deletionPolicy entrypoint
        entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata
        rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig
        submitterPodTemplate suspend ttlSecondsAfterFinished""",
    "rayClusterSpec": """authOptions autoscalerOptions enableInTreeAutoscaling
        gcsFaultToleranceOptions headGroupSpec headServiceAnnotations managedBy rayVersion suspend
        workerGroupSpecs""",
    "authOptions": "mode secretName enableK8sTokenAuth",
    "autoscalerOptions": """env envFrom idleTimeoutSeconds image imagePullPolicy resources
        securityContext upscalingMode volumeMounts""",
    "headGroupSpec": "enableIngress headService rayStartParams serviceType template",
    "workerGroupSpecs": """groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts
        rayStartParams replicas scaleStrategy suspend template""",
    "template": "metadata spec",
    "submitterPodTemplate": "metadata spec",
    "spec": "containers restartPolicy securityContext serviceAccountName volumes",
    "containers": "command args env image name resources volumeMounts",
    "resources": "limits requests",
    "env": "name value valueFrom",
    "volumeMounts": "name mountPath readOnly subPath",
    "volumes": "name persistentVolumeClaim projected configMap emptyDir",
    "securityContext": "fsGroup runAsUser runAsGroup",
}


def commands(file: Path) -> list[str]:
    config = yaml.safe_load(file.read_text())
    return [line for key in config if key.endswith("commands") for line in config[key]]


def manifests() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    return {manifest["kind"]: manifest for manifest in found}


def scripts() -> dict[str, str]:
    """Everything that a shell runs, by where it stands."""
    lines = {f"{f.name}-{i}": c for f in LAUNCHED for i, c in enumerate(commands(f))}
    return lines | {
        "slurm.sh": (DEPLOY / "slurm.sh").read_text(),
        "kuberay.yaml": manifests()["ConfigMap"]["data"]["search.sh"],
    }


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.name)
def test_the_cluster_launcher_takes_the_file(file):
    validate_config(prepare_config(yaml.safe_load(file.read_text())))


def test_the_launcher_refuses_what_it_does_not_know():
    wrong = yaml.safe_load(LAUNCHED[0].read_text()) | {"head_commands": []}
    with pytest.raises(Exception, match="head_commands"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("file", [*LAUNCHED, DEPLOY / "slurm.sh"], ids=lambda file: file.name)
def test_ray_starts_with_a_token_and_keeps_its_dashboard_to_itself(file):
    """By the parser of `ray start`, so that every option exists and its value is of its type."""
    text = "\n".join(commands(file)) if file.suffix == ".yaml" else file.read_text()
    numbers = re.sub(r"\$\(\([^)]*\)\)|\"?\$\w*port\"?", "7000", text.replace("\\\n", " "))
    found = re.findall(r"(?<![`\w])ray start (--[^;&\n']*)", numbers)
    starts = [[word for word in shlex.split(line) if not word.startswith("$")] for line in found]
    heads, workers = [], []
    for words in starts:
        options = start.make_context("start", words).params
        (heads if options["head"] else workers).append(options)
    assert len(heads) == len(workers) == 1
    assert heads[0]["dashboard_host"] == "127.0.0.1"
    assert heads[0]["metrics_export_port"]
    assert "RAY_AUTH_MODE=token" in file.read_text()


@pytest.mark.parametrize("name", scripts())
def test_a_shell_understands_it(name):
    script = scripts()[name]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "--shell=bash", "-"], input=script, text=True, check=True)


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.name)
def test_what_is_sent_to_the_nodes_is_enough_to_install(file, tmp_path):
    mounts = yaml.safe_load(file.read_text())["file_mounts"]
    here = {there: local for there, local in mounts.items() if not local.startswith("~")}
    for there, local in here.items():
        copy = shutil.copytree if (ROOT / local).is_dir() else shutil.copy
        copy(ROOT / local, tmp_path / Path(there).name)
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    code = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path / 'out')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)

    (wheel,) = (tmp_path / "out").glob("*.whl")
    modules = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    packages = ("search", "trainers", "spaces")
    assert modules == {
        str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*.py")
    }
    shutil.rmtree(tmp_path / "out")  # the folder is read-only in a container
    assert before == {p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts}


def test_versions_agree_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {r.name: r for r in map(Requirement, project["dependencies"])}
    assert Version(PINS["torch"]) in needed["torch"].specifier
    assert Version(PINS["ray"]) in needed["ray"].specifier
    image = f"rayproject/ray:{PINS['ray']}-py311-gpu"
    for file in LAUNCHED[:2]:
        assert yaml.safe_load(file.read_text())["docker"]["image"] == image
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"ARG RAY={PINS['ray']}\nFROM rayproject/ray:${{RAY}}-py311-gpu\n" in dockerfile
    spec = manifests()["RayJob"]["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == PINS["ray"]
    (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["image"].endswith(f"/augury:{project['version']}")
    texts = [dockerfile, *(line for file in LAUNCHED for line in commands(file))]
    for extras in re.findall(r"(?:augury|\.)\[([\w,]+)\]", "\n".join(texts)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert all("constraints.txt" in text for text in texts if "[timm" in text)


def test_the_image_is_made_by_the_rules():
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is not None or platform.machine() == "x86_64":  # elsewhere there is no wheel of it
        subprocess.run([str(hadolint), DEPLOY / "Dockerfile"], check=True)
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY --chown=\S+ (.*) \S+$", dockerfile, re.MULTILINE))
    sources = {name for names in copied for name in names.split()}
    sent = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sources == set(sent)
    assert all((ROOT / name).exists() for name in sources)


def test_kuberay_knows_every_field():
    def check(kind: str, content: dict[str, Any]) -> None:
        assert set(content) <= set(FIELDS[kind].split()), kind
        for key, value in content.items():
            if key in FIELDS:
                for part in value if isinstance(value, list) else [value]:
                    check(key, part)

    job = manifests()["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    check("RayJobSpec", job["spec"])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert job["spec"]["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode"}


def test_the_service_of_the_head_has_the_port_of_the_dashboard():
    """KubeRay takes a head's ports for all that its service has, and only without any its own."""
    cluster = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    named = {port["name"] for port in head.get("ports", [])}
    assert not named or named >= {"gcs-server", "dashboard", "metrics"}


def test_the_network_policy_covers_every_pod_and_opens_no_port_to_all():
    job, policy = manifests()["RayJob"]["spec"], manifests()["NetworkPolicy"]["spec"]
    cluster = job["rayClusterSpec"]
    pods = [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
        job["submitterPodTemplate"],
    ]
    chosen = policy["podSelector"]["matchLabels"].items()
    assert all(chosen <= pod["metadata"]["labels"].items() for pod in pods)
    assert all(rule["from"] for rule in policy["ingress"])
    outside = [rule for rule in policy["ingress"] if "namespaceSelector" in rule["from"][0]]
    assert [[port["port"] for port in rule["ports"]] for rule in outside] == [[8265], [8080]]


def expressions() -> list[str]:
    """PromQL of the dashboard, with every run for the variable."""
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [expression.replace("$run", ".*") for expression in found]


def test_the_dashboard_draws_what_is_exported_and_all_of_it():
    drawn = {name for line in expressions() for name in re.findall(r"ray_\w+", line)}
    assert drawn == set(exported())
    manual = (ROOT / "docs" / "cluster.md").read_text()
    assert set(re.findall(r"ray_augury_\w+", manual)) == set(exported())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus")
def test_prometheus_understands_both_files(tmp_path):
    rules = [{"record": f"panel:{i}", "expr": line} for i, line in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "grafana", "rules": rules}]})
    )
    subprocess.run(["promtool", "check", "config", DEPLOY / "prometheus.yml"], check=True)
    subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], check=True)


class Node(BaseHTTPRequestHandler):
    """A node's metrics port, with a value of every gauge."""

    def do_GET(self) -> None:
        body = ""
        for name, tag in exported().items():
            more = f',{tag}="x"' if tag else ""
            kind = "counter" if name.endswith("_total") else "gauge"
            body += f"# TYPE {name} {kind}\n"
            body += f'{name}{{run="w2",stage="probe"{more}}} 3\n'
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")
def test_a_real_prometheus_finds_the_nodes_and_answers_the_dashboard(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Node)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nodes = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{server.server_port}"]}]
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))  # as Ray's head writes it
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(tmp_path / "nodes.json")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with closing(create_server(("127.0.0.1", 0))) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    prometheus = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
        ],
        stderr=subprocess.DEVNULL,
    )

    def answered(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}") as reply:
            return json.load(reply)["data"]["result"]

    def missing() -> list[str]:
        try:
            return [line for line in expressions() if not answered(line)]
        except OSError:  # it does not listen yet
            return expressions()

    try:
        end = time.monotonic() + 60
        while (silent := missing()) and time.monotonic() < end:
            time.sleep(0.3)
        assert silent == []
    finally:
        prometheus.terminate()
        prometheus.wait()
        server.shutdown()
        server.server_close()
