"""Launch files: what Ray, Kubernetes, AWS, Azure and the linters say of them, and what we promise of each."""

import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from jbot.store.processes import is_alive

CLUSTER = ROOT / "cluster/deploy"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
RAY_UP = ("aws", "gcp", "azure")

launch = pytest.importorskip("cluster.launch", reason="needs PyYAML, which Ray brings")


def content(name: str) -> dict:
    return yaml.safe_load((CLUSTER / name).read_text())


def kube(kind: str) -> dict:
    (found,) = [d for d in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()) if d["kind"] == kind]
    return found


def changed(document: dict, path: str, value: object) -> dict:
    """A copy with one value replaced, or taken out when it is None; a number in the path indexes a list."""
    document = copy.deepcopy(document)
    *front, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place = document
    for key in front:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def said(document: dict) -> str:
    return "\n".join(launch.content_problems(yaml.safe_dump(document)))


# --- every file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RAY_UP, "kuberay", "skypilot"])
def test_only_placeholders_are_left_to_do(name):
    pytest.importorskip("ray")
    text = (CLUSTER / f"{name}.yaml").read_text()
    assert list(launch.content_problems(text)) == []
    found = list(launch.problems(CLUSTER / f"{name}.yaml"))
    assert all("replace CHANGE-ME in" in problem for problem in found)
    assert bool(found) == (name != "skypilot")  # its storage is given on the command line


def test_the_command_says_each_problem_and_ends_with_2(tmp_path):
    filled = tmp_path / "filled.yaml"
    filled.write_text((CLUSTER / "aws.yaml").read_text().replace("CHANGE-ME", "registry.example"))
    other, broken = tmp_path / "other.yaml", tmp_path / "broken.yaml"
    other.write_text("a: 1\n")
    broken.write_text("a: [1\n")
    command = [sys.executable, "-m", "cluster.launch", str(filled)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{filled}: good\n", "")
    command += [str(other), str(broken), str(tmp_path / "none.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [line.split(": ")[2].split(" ")[0] for line in lines] == ["neither", "not", "cannot"]


def test_versions_and_names_are_the_same_everywhere():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for spec in (kube("RayCluster")["spec"], kube("RayJob")["spec"]["rayClusterSpec"]):
        assert spec["rayVersion"] == pins["ray"]
    images = re.findall(r"\S+/jbot:(\S+)", "".join(path.read_text() for path in CLUSTER.glob("*.yaml")))
    assert len(images) == 7
    assert set(images) == {version}


def test_job_and_cluster_of_kuberay_are_the_same_cluster():
    assert kube("RayJob")["spec"]["rayClusterSpec"] == kube("RayCluster")["spec"]


# --- ray up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("docker/image", "registry.example/jbot", "docker.image must have a digest or a tag other than latest"),
        ("docker/image", "registry.example/jbot:latest", "docker.image must have a digest or a tag"),
        ("docker/run_options", [], "must set RAY_AUTH_MODE=token"),
        ("file_mounts", {}, "must bring a token"),
        ("head_start_ray_commands/1", "ray start --head --dashboard-host=0.0.0.0", "--dashboard-host=127.0.0.1"),
        ("idle_timeout_minutes", 600, "at most an hour"),
        ("available_node_types/l4/min_workers", 1, "l4: min_workers must be 0"),
        ("available_node_types/l4/node_config/InstanceMarketOptions", None, "l4: workers must be spot"),
        ("available_node_types/head/node_config/InstanceMarketOptions", {"MarketType": "spot"}, "head must not be"),
        ("available_node_types/l4/resources", None, "Ray's schema: available_node_types.l4: 'resources' is"),
        ("max_workers", -1, "Ray's schema: max_workers"),
        ("max_wokers", 3, "Ray's schema: the file: Additional properties"),
        ("head_node_type", "hed", "Ray refuses it: ValueError: `head_node_type` must be one of"),
        ("provider/type", "awz", "Ray refuses it: NotImplementedError"),
    ],
)
def test_what_is_refused_in_a_file_of_ray_up(path, value, complaint):
    pytest.importorskip("ray")
    assert complaint in said(changed(content("aws.yaml"), path, value))


def test_aws_knows_every_field_of_its_machines():
    """The parameters of EC2's RunInstances, as botocore would refuse them before they are sent."""
    loaders = pytest.importorskip("botocore.loaders")
    model = pytest.importorskip("botocore.model").ServiceModel(loaders.Loader().load_service_model("ec2", "service-2"))
    shape = model.operation_model("RunInstances").input_shape
    types = content("aws.yaml")["available_node_types"]
    for node in types.values():
        assert aws_errors(node["node_config"], shape) == ""
    assert "Unknown parameter" in aws_errors(types["l4"]["node_config"] | {"InstanceTyp": "x"}, shape)
    assert "Invalid type" in aws_errors(types["l4"]["node_config"] | {"InstanceMarketOptions": "spot"}, shape)


def aws_errors(node: dict, shape: object) -> str:
    from botocore.validate import ParamValidator

    return ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()


def test_azure_knows_every_field_of_its_machines():
    """Those of the template that Ray fills in, and the two that Ray reads itself."""
    ray = pytest.importorskip("ray")
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-vm-template.json"
    known = set(json.loads(template.read_text())["parameters"]) | {"availability_zone"}
    for node in content("azure.yaml")["available_node_types"].values():
        assert set(node["node_config"]["azure_arm_parameters"]) <= known


def test_google_knows_every_field_of_its_machines():
    """The Instance of Compute's API, from the description that Google's client carries."""
    discovery = pytest.importorskip("googleapiclient.discovery_cache", reason="the extra dev has it")
    schemas = json.loads(discovery.get_static_doc("compute", "v1"))["schemas"]
    for node in content("gcp.yaml")["available_node_types"].values():
        assert list(google_errors(node["node_config"], "Instance", schemas)) == []


def google_errors(value: object, name: str, schemas: dict) -> object:
    """Fields that the API does not know, and lists or objects where it wants the other."""
    known = schemas[name]["properties"]
    for key, inner in value.items():
        kind = known.get(key, {})
        if not kind:
            yield f"{name}.{key}"
        elif kind.get("type") == "array":
            if not isinstance(inner, list):
                yield f"{name}.{key} is no list"
            elif "$ref" in kind["items"]:
                for item in inner:
                    yield from google_errors(item, kind["items"]["$ref"], schemas)
        elif "$ref" in kind:
            if isinstance(inner, dict):
                yield from google_errors(inner, kind["$ref"], schemas)
            else:
                yield f"{name}.{key} is no object"
        elif "enum" in kind and inner not in kind["enum"]:
            yield f"{name}.{key} is not {inner}"


# --- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("spec/authOptions", None, "authOptions.mode must be token"),
        ("spec/authOptions/mode", "disabled", "authOptions.mode must be token"),
        ("spec/enableInTreeAutoscaling", False, "enableInTreeAutoscaling must be true"),
        ("spec/autoscalerOptions/idleTimeoutSeconds", 99999, "idleTimeoutSeconds must be at most an hour"),
        ("spec/workerGroupSpecs/0/minReplicas", 2, "minReplicas of gpu must be 0"),
        ("spec/workerGroupSpecs/0/groupName", None, "Ray refuses it: KeyError: 'groupName'"),
        ("spec/headGroupSpec/template/spec/containers/0/image", "jbot", "image must have a digest or a tag"),
    ],
)
def test_what_is_refused_in_a_ray_cluster(path, value, complaint):
    pytest.importorskip("ray")
    assert complaint in said(changed(kube("RayCluster"), path, value))


def test_what_rays_autoscaler_makes_of_the_cluster():
    pytest.importorskip("ray")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    document = {"metadata": {"name": "jbot", "namespace": "default"}, "spec": kube("RayCluster")["spec"]}
    types = _derive_autoscaling_config_from_ray_cr(document)["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in types.items()} == {
        "headgroup": (0, 0),
        "gpu": (0, 8),
    }
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["headgroup"]["resources"]


@pytest.mark.parametrize("kind", ["ServiceAccount", "NetworkPolicy", "head", "worker"])
def test_kubernetes_knows_every_field(kind):
    """Kubernetes' own schemas, strictly: a field that it does not know is an error. Pods are those of the templates."""
    validator = pytest.importorskip("kubernetes_validate")
    spec = kube("RayCluster")["spec"]
    groups = {"head": spec["headGroupSpec"], "worker": spec["workerGroupSpecs"][0]}
    pod = {"apiVersion": "v1", "kind": "Pod"}
    document = pod | groups[kind]["template"] if kind in groups else kube(kind)
    validator.validate(document, "1.33", strict=True)
    with pytest.raises(validator.ValidationError):
        validator.validate(changed(document, "metadata/labls", {"a": "b"}), "1.33", strict=True)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_knows_every_field(kind):
    """The schemas of KubeRay's own definitions, as an API server applies them; they are not kept here."""
    if not (folder := os.environ.get("JBOT_KUBERAY_CRDS")):
        pytest.skip("JBOT_KUBERAY_CRDS: a folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of KubeRay")

    from jsonschema import Draft7Validator

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte
    definition = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=loader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    assert [error.message for error in Draft7Validator(schema).iter_errors(kube(kind))] == []
    wrong = changed(kube(kind), "spec/grouName", "gpu")
    assert [error.message for error in Draft7Validator(schema).iter_errors(wrong)] != []


def strict(schema: object, names: bool = False) -> object:
    """An OpenAPI schema in which unknown fields are errors, as for kubectl apply; `names`: its keys are field names."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if not names and schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(inner, not names and key == "properties") for key, inner in schema.items()}
    open_ended = names or "x-kubernetes-preserve-unknown-fields" in schema or "additionalProperties" in schema
    return made if open_ended or "properties" not in schema else made | {"additionalProperties": False}


# --- SkyPilot, compose, scripts, image ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("resources/use_spot", False, "use_spot must be true"),
        ("resources/autostop", None, "autostop must be set"),
        ("resources/image_id", None, "image_id must have a digest or a tag"),
        ("run", "ray start --head", "run must set RAY_AUTH_MODE=token"),
    ],
)
def test_what_is_refused_in_a_task_of_skypilot(path, value, complaint):
    assert complaint in said(changed(content("skypilot.yaml"), path, value))


def test_skypilot_knows_every_field():
    sky = pytest.importorskip("sky", reason="pip install skypilot, in an environment of its own")
    given = {"env_overrides": [("STORAGE", "s3://b/x")], "secrets_overrides": [("RAY_AUTH_TOKEN", "t")]}
    task = sky.Task.from_yaml_config(content("skypilot.yaml"), **given)
    assert [resources.use_spot for resources in task.resources] == [True]


def test_the_tracking_server_is_on_loopback_with_secrets_of_its_own():
    compose = content("compose.yaml")
    services = compose["services"]
    assert {name: service.get("ports") for name, service in services.items() if "ports" in service} == {
        "mlflow": ["127.0.0.1:5000:5000"]
    }
    assert all(launch.pinned(service["image"]) for service in services.values())
    assert [name for name, service in services.items() if "healthcheck" not in service] == ["secrets"]
    image = (CLUSTER / "Dockerfile").read_text().split("AS tracking")[1].split("FROM")[0]
    programs = {service["command"][0] for service in services.values() if "jbot-tracking" in service["image"]}
    assert all(f"COPY --chown=jbot:jbot {program} {program}" in image for program in programs)
    named = set(re.findall(r"\$\{(\w+)", (CLUSTER / "compose.yaml").read_text()))
    example = dict(line.split("=") for line in (CLUSTER / "env.example").read_text().splitlines() if "=" in line)
    assert example == dict.fromkeys(named, "CHANGE-ME")
    assert "cluster/.env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("wrong", ["CHANGE-ME", "", "short", "with,a,comma,and,long,enough"])
def test_the_tracking_server_refuses_secrets_that_are_none(wrong):
    names = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    good = dict.fromkeys(names, "0123456789abcdef")
    for name in names:
        ended = tracking("secrets", good | {name: wrong})
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"tracking.sh: {name} must be 16 or more letters and digits")
        assert not wrong or wrong not in ended.stderr
    assert tracking("serve", good | {names[0]: wrong}).returncode == 2
    assert tracking("secrets", good).returncode == 0


def tracking(step: str, secrets: dict[str, str]) -> subprocess.CompletedProcess:
    command = ["bash", str(CLUSTER / "tracking.sh"), step]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]} | secrets)


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts_are_clean_and_say_what_they_want(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("no shellcheck here; the extra dev has it")
    ended = subprocess.run([shellcheck, "--external-sources", str(script)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert os.access(script, os.X_OK)
    environment = {"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN": "t", "SLURM_SUBMIT_DIR": str(ROOT)}
    ended = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"{script.name}: ")


@pytest.fixture
def pretended(tmp_path):
    """A folder with this checkout's scripts, and programs that only say how they were called; runs a script in it."""
    programs = {
        "ray": '[ "$1" != start ] || { [ -z "$RAY_ENDS" ] && exec sleep 60; until [ -s idle ]; do sleep 0.1; done; }',
        "python": """case "$*" in
            *get_node_ip_address*) echo 10.0.0.7 ;;
            *cluster.idle*) echo $$ >idle; exec sleep 60 ;;
            *) umask >study; stat -c %a "$RAY_AUTH_TOKEN_PATH" >>study; echo "$*" >>study; exit 3 ;;
        esac""",
        "sbatch": 'echo "$*" >sbatch; echo 77',
        "scancel": 'echo "$*" >scancel',
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "cluster").symlink_to(ROOT / "cluster")
    for name, does in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*command: str, **environment: str) -> int:
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "VENV": str(tmp_path), "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "5"}
        return subprocess.run(
            ["bash", *command], cwd=tmp_path, env=own | environment, umask=0o022, timeout=60
        ).returncode

    return run


def test_a_job_of_slurm_ends_as_its_study_does_and_leaves_no_token(pretended, tmp_path):
    assert pretended("cluster/deploy/slurm.sh", "studies/x.py", "--seeds", "2", WORKERS="4") == 3
    umask, token, called = (tmp_path / "study").read_text().splitlines()
    assert (umask, token) == ("0022", "600")  # others may read the records, and nobody the token
    assert called == "studies/x.py --seeds 2 --grow-to 4 --address 10.0.0.7:20020"
    assert "--array=1-4" in (tmp_path / "sbatch").read_text()
    assert (tmp_path / "scancel").read_text() == "77\n"
    assert list((tmp_path / ".slurm").iterdir()) == []


def test_a_worker_whose_head_is_gone_leaves_no_process(pretended, tmp_path):
    assert pretended("cluster/deploy/node.sh", "worker", "10.0.0.7:1", RAY_AUTH_TOKEN="t", RAY_ENDS="yes") == 0
    watcher, until = int((tmp_path / "idle").read_text()), time.monotonic() + 20
    while is_alive(watcher) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(watcher)


def test_the_image_is_clean():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("no hadolint here; the extra dev has it")
    ended = subprocess.run([hadolint, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_image_has_what_it_copies_and_nobody_is_root():
    text = (CLUSTER / "Dockerfile").read_text()
    assert all(launch.pinned(image) for image in re.findall(r"^FROM (\S+:\S+)", text, re.MULTILINE))
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["1000:1000"]
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    let_in = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    for name in {word for word in copied if not word.startswith("--")} - {"."}:
        assert (ROOT / name).exists()
        assert f"!{name.split('/')[0]}" in let_in
    steps = re.findall(r"^[^#\n]*(?:RUN|&&) cluster/deploy/install\.sh (\w+)", text, re.MULTILINE)
    assert steps == ["system", "tracking", "python"]
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    (empty,) = re.findall(r"for package in ([\w ]+);", text)
    assert sorted(empty.split()) == sorted(name.rstrip("*") for name in found)


@pytest.mark.parametrize(
    "page", ["docs/cluster.md", "cluster/deploy/kuberay.yaml", "cluster/deploy/slurm.sh", "cluster/deploy/on_head.sh"]
)
def test_commands_name_studies_and_options_that_exist(page):
    from studies.runner.cli import parser

    text = re.sub(r"\\?\s*\n[#\s]*(?=--)", " ", (ROOT / page).read_text())
    commands = re.findall(r"studies/(\w+)\.py((?: --[\w-]+(?: (?!--)[\w:/.-]+)?)*)", text)
    assert commands
    for study, options in commands:
        parser(importlib.import_module(f"studies.{study}").study).parse_args(options.split())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--grow-to", "2"], "--grow-to 2 needs --address"),
        (["--grow-to", "0", "--address", "auto"], "--grow-to needs at least one pack, got 0"),
    ],
)
def test_what_cannot_grow_is_said_at_once(options, complaint, capsys, monkeypatch, tmp_path):
    from studies import main, precision

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(precision.study, ["--dry-run", *options])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_study_without_ray_is_one_line_before_anything_is_made(capsys, monkeypatch, tmp_path):
    from studies import main, precision

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        main(precision.study, ["--preset", "smoke"])
    assert ended.value.code == 2
    says = "error: Ray is not installed: pip install 'jbot-studies[cluster]', or use --inline\n"
    assert capsys.readouterr().err == says
    assert list(tmp_path.iterdir()) == []
