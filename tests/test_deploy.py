"""The files in deploy/: linters have nothing to say, commands parse, and paths and metrics are the server's."""

import argparse
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from bge_integrations.cli import serve
from bge_integrations.server import Limits, background
from bge_integrations.server.app import PATHS
from serving import ServedEncoder

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
KUBERNETES = {part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes/bge.yaml").read_text())}
CONTAINER = KUBERNETES["Deployment"]["spec"]["template"]["spec"]["containers"][0]
DASHBOARD = json.loads((DEPLOY / "monitoring/grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs/how-to/deploy.md").read_text()
LIMITS = Limits()


def unit(section, key):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "systemd/bge.service")
    return parser[section][key]


def tool(name):
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def nothing_to_say(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# --- linters


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed")
def test_the_dockerfile_has_nothing_that_its_linter_minds():
    nothing_to_say(tool("hadolint"), DEPLOY / "docker/Dockerfile")


@pytest.mark.skipif(tool("check-jsonschema") is None, reason="check-jsonschema is not installed")
def test_compose_yaml_is_of_the_compose_specification():
    nothing_to_say(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "docker/compose.yaml")


@pytest.mark.skipif(tool("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path):
    # It would mind a command that is not on this machine.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (DEPLOY / "systemd/bge.service").read_text(), flags=re.M)
    (tmp_path / "bge.service").write_text(text)
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", tmp_path / "bge.service"], capture_output=True, text=True, timeout=60
    )
    assert [line for line in done.stderr.splitlines() if "bge.service" in line] == []


@pytest.mark.skipif(tool("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("name", ["root", "prefix"])
def test_nginx_takes_its_configuration(name, tmp_path):
    text = (DEPLOY / f"nginx/{name}.conf").read_text().replace("bge:7860", "127.0.0.1:7860")
    (tmp_path / "site.conf").write_text(text.replace("listen 80", "listen 127.0.0.1:18080"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    main = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {folders} include {tmp_path}/site.conf; }}"
    (tmp_path / "nginx.conf").write_text(main)
    nothing_to_say(tool("nginx"), "-t", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf")


# --- what the files call


def parsed(words):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(words)


def test_every_command_parses():
    assert json.loads(re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.M)[1]) == ["bge", "serve"]
    compose = parsed(COMPOSE["services"]["bge"]["command"])
    assert (compose.api_key_file, compose.log_format) == ("/run/secrets/keys", "json")
    pod = parsed(CONTAINER["args"])
    mount = CONTAINER["volumeMounts"][0]
    assert pod.api_key_file == f"{mount['mountPath']}/keys"
    start = shlex.split(unit("Service", "ExecStart"))
    assert start[:2] == ["/opt/bge/bin/bge", "serve"]
    assert parsed(start[2:]).workers == 2


def test_the_dockerfile_sets_address_and_version(monkeypatch):
    values = dict(re.findall(r"(BGE_SERVE_\w+)=(\S+)", DOCKERFILE))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert (parsed([]).host, parsed([]).port) == ("0.0.0.0", 7860)
    assert "EXPOSE 7860" in DOCKERFILE
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"ARG VERSION={version}\n" in DOCKERFILE
    assert CONTAINER["image"].endswith(f":{version}")


def test_a_port_in_the_environment_that_is_no_number_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("BGE_SERVE_PORT", "http")
    with pytest.raises(SystemExit):
        parsed([])
    assert "--port" in capsys.readouterr().err


def test_compose_mounts_files_that_are_there_and_gives_the_secrets_that_are_read():
    services = COMPOSE["services"]
    mounts = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]
    assert len(mounts) == 5
    for source, _, mode in mounts:
        assert (DEPLOY / "docker" / source).is_file()
        assert mode == "ro"
    read = set(re.findall(r"/run/secrets/([\w-]+)", str(services) + (DEPLOY / "monitoring/prometheus.yml").read_text()))
    assert read == COMPOSE["secrets"].keys() == {name for part in services.values() for name in part.get("secrets", [])}
    for port in [port for service in services.values() for port in service.get("ports", [])]:
        assert port.startswith("127.0.0.1:")


def test_whoever_asks_the_server_uses_its_name_port_and_paths():
    scrape = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["bge:7860"]
    for name in ("root", "prefix"):
        assert "server bge:7860;" in (DEPLOY / f"nginx/{name}.conf").read_text()
    assert "bge" in COMPOSE["services"]
    assert CONTAINER["ports"][0]["containerPort"] == 7860
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert {probe["port"] for probe in probes.values()} == {CONTAINER["ports"][0]["name"]}
    assert {"/ready", "/health", "/metrics"} <= set(PATHS)


def test_the_prefix_is_the_same_wherever_it_stands():
    rule = KUBERNETES["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]
    assert parsed(CONTAINER["args"]).root_path == rule["path"] == "/ml/bge"
    assert "location /ml/bge/ {" in (DEPLOY / "nginx/prefix.conf").read_text()


def test_whoever_stands_in_front_waits_longer_than_the_server():
    for name in ("root", "prefix"):
        text = (DEPLOY / f"nginx/{name}.conf").read_text()
        assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > LIMITS.answer_seconds
        assert int(re.search(r"client_max_body_size (\d+)m", text)[1]) << 20 == LIMITS.body_bytes
    pod = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + LIMITS.drain_seconds
    assert int(unit("Service", "TimeoutStopSec")) > LIMITS.drain_seconds
    assert int(COMPOSE["services"]["bge"]["stop_grace_period"].removesuffix("s")) > LIMITS.drain_seconds


def test_kubernetes_parts_find_each_other():
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    assert KUBERNETES["Service"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    backend = KUBERNETES["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == KUBERNETES["Service"]["metadata"]["name"]
    assert backend["port"]["name"] == KUBERNETES["Service"]["spec"]["ports"][0]["name"]
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", KUBERNETES["Deployment"]["metadata"]["name"])


# --- metrics


@pytest.fixture(scope="module")
def exported():
    """The series of a server, each with the names of its labels."""
    with ServedEncoder() as encoder, background(encoder) as url:
        httpx.post(f"{url}/embed", json={"texts": "a"})
        text = httpx.get(f"{url}/metrics").text
    series = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*?)\})? ", text, re.M):
        series.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return series


def test_the_dashboard_asks_for_series_and_labels_that_the_server_exports(exported):
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(queries) >= 6
    for query in queries:
        names = re.findall(r"bge_\w+", query)
        assert names
        assert set(names) <= exported.keys()
        known = set.union(*(exported[name] for name in names))
        asked = set(re.findall(r"(\w+)=~?\"", query))
        asked |= {label for by in re.findall(r"by \((.*?)\)", query) for label in by.split(", ")}
        assert asked <= known, query
        assert query.count("(") == query.count(")")


def test_the_panels_of_the_dashboard_are_told_apart():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    routes = next(part for part in DASHBOARD["templating"]["list"] if part["name"] == "route")
    work = [path for path in PATHS if re.fullmatch(routes["allValue"], path)]
    assert {"/embed", "/v1/embeddings", "/v2/rerank", "/tokens"} <= set(work)
    assert not {"/ready", "/health", "/metrics"} & set(work)


def test_the_page_names_metrics_that_the_server_exports(exported):
    table = PAGE.partition("| metric | what |")[2]
    named = set(re.findall(r"`(bge_\w+)", table))
    ours = {name.removesuffix("_sum") for name in exported if name.startswith("bge_")}
    ours = {name for name in ours if not re.search(r"_(bucket|count|created)$", name)}
    assert named == ours


# --- the page


@pytest.mark.parametrize(
    "name",
    [
        "docker/Dockerfile", "docker/compose.yaml", "nginx/root.conf", "nginx/prefix.conf", "systemd/bge.service",
        "kubernetes/bge.yaml", "monitoring/prometheus.yml",
    ],
)  # fmt: skip
def test_the_page_shows_the_file(name):
    shown = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S))
    assert shown[Path(name).name] == (DEPLOY / name).read_text()
