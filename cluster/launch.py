"""Check the launch files of cluster/deploy, or your copies of them, before a cloud is paid for what is wrong in them.

    python -m cluster.launch cluster/deploy/aws.yaml my-kuberay.yaml ...

Ray's own schema and config checks, and what this project promises of every cluster: a token, loopback dashboards, a
pinned image, workers that come from zero and go when idle. Exits with 0, or with 2 and one line for each problem.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from jbot.cli import BAD_INPUT, Parser, bad_input, docstring, program
from jbot.messages import first_line

PLACEHOLDER = "CHANGE-ME"
KINDS = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}
"""Kubernetes objects that hold a Ray cluster, and where."""


def problems(path: Path) -> Iterator[str]:
    """Yield what is wrong with a launch file, one line each; a shell script is only searched for placeholders."""
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), start=1):
        if PLACEHOLDER in line.partition("#")[0]:
            yield f"line {number}: replace {PLACEHOLDER} in {line.split('#')[0].strip()!r}"
    if path.suffix in (".yaml", ".yml"):
        try:
            yield from content_problems(text)
        except Exception as error:  # a document of another form trips Ray's checks and ours in ways of its own
            yield f"of another form than a launch file: {type(error).__name__}: {first_line(error)}"


def content_problems(text: str) -> Iterator[str]:
    """Yield what is wrong with the content of a YAML file, placeholders aside."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        yield f"not YAML: {' '.join(str(error).split())}"
        return
    clusters = [document for document in documents if isinstance(document, dict) and document.get("kind") in KINDS]
    if clusters:
        for document in clusters:
            yield from kuberay_problems(document)
    elif len(documents) == 1 and isinstance(documents[0], dict) and "provider" in documents[0]:
        yield from ray_up_problems(documents[0])
    elif len(documents) == 1 and isinstance(documents[0], dict) and "resources" in documents[0]:
        yield from sky_problems(documents[0])
    else:
        yield "neither a cluster file of ray up, nor RayCluster or RayJob, nor a task of SkyPilot"


def pinned(image: Any) -> bool:
    """Whether an image has a digest, or a tag that is not latest."""
    return isinstance(image, str) and bool(re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w.-]+$", image))


def image_problems(name: str, image: Any) -> Iterator[str]:
    """Whether an image is pinned."""
    if not pinned(image):
        yield f"{name} must have a digest or a tag other than latest, got {image!r}"


def as_ray_sees(make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Return a file as Ray reads it, checked by its schema, and why Ray refuses it, if it does."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    try:
        validate_config(made := make())
    except ValidationError as error:
        return {}, f"Ray's schema: {'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"
    except (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return {}, f"Ray refuses it: {type(error).__name__}: {error}"
    return made, ""


def ray_up_problems(config: dict[str, Any]) -> Iterator[str]:
    """Ray's checks, then ours; the latter only for a file that passes the former."""
    from ray.autoscaler._private.util import prepare_config

    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)  # else it tells of each default
    ready, refusal = as_ray_sees(lambda: prepare_config(config))  # fills in the provider's defaults
    if refusal:
        yield refusal
        return
    docker, types = ready.get("docker") or {}, ready["available_node_types"]
    yield from image_problems("docker.image", docker.get("image"))
    if not any("RAY_AUTH_MODE=token" in option for option in docker.get("run_options") or []):
        yield "docker.run_options must set RAY_AUTH_MODE=token"
    if not any(name.endswith("/.ray/auth_token") for name in ready["file_mounts"]):
        yield "file_mounts must bring a token to .ray/auth_token"
    starts = " ".join(ready["head_start_ray_commands"])
    if "--dashboard-host=127.0.0.1" not in starts:
        yield "head_start_ray_commands must say --dashboard-host=127.0.0.1"
    if not 0 < ready["idle_timeout_minutes"] <= 60:
        yield f"idle_timeout_minutes must be at most an hour, got {ready['idle_timeout_minutes']}"
    workers = {name: kind for name, kind in types.items() if name != ready["head_node_type"]}
    for name, kind in workers.items():
        if kind["min_workers"] != 0:
            yield f"{name}: min_workers must be 0, or idle machines never go, got {kind['min_workers']}"
        if not is_spot(kind["node_config"]):
            yield f"{name}: workers must be spot machines"
    if is_spot(types[ready["head_node_type"]]["node_config"]):
        yield f"{ready['head_node_type']}: the head must not be a spot machine: the study dies with it"


def is_spot(node: dict[str, Any]) -> bool:
    """Whether AWS, Google or Azure may take a machine of this configuration away."""
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    model = node.get("scheduling", {}).get("provisioningModel")
    priority = node.get("azure_arm_parameters", {}).get("priority")
    return market == "spot" or model == "SPOT" or priority == "Spot"


def kuberay_problems(document: dict[str, Any]) -> Iterator[str]:
    """Yield what Ray's autoscaler refuses, then what we do."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    name, metadata = f"{document['kind']} {document.get('metadata', {}).get('name')}", {"name": "j", "namespace": "d"}
    spec = functools.reduce(lambda inside, key: inside.get(key) or {}, KINDS[document["kind"]], document)
    _, refusal = as_ray_sees(lambda: derive({"metadata": metadata, "spec": spec}))
    if refusal:
        yield f"{name}: {refusal}"
        return
    if spec.get("authOptions") != {"mode": "token"}:
        yield f"{name}: authOptions.mode must be token"
    if not spec.get("enableInTreeAutoscaling"):
        yield f"{name}: enableInTreeAutoscaling must be true"
    if not 0 < spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 60) <= 3600:
        yield f"{name}: idleTimeoutSeconds must be at most an hour"
    if document["kind"] == "RayJob" and not document["spec"].get("shutdownAfterJobFinishes"):
        yield f"{name}: shutdownAfterJobFinishes must be true"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            yield from image_problems(f"{name}: image", container.get("image"))
    for group in spec["workerGroupSpecs"]:
        if group.get("minReplicas", 0) != 0:
            yield f"{name}: minReplicas of {group['groupName']} must be 0, or idle machines never go"


def sky_problems(task: dict[str, Any]) -> Iterator[str]:
    """SkyPilot checks its schema itself (sky jobs launch); this is ours."""
    resources = task["resources"]
    yield from image_problems("resources.image_id", resources.get("image_id"))
    if not resources.get("use_spot"):
        yield "resources.use_spot must be true"
    if not resources.get("autostop"):
        yield "resources.autostop must be set, for who uses sky launch"
    if "RAY_AUTH_MODE=token" not in task.get("run", ""):
        yield "run must set RAY_AUTH_MODE=token"


@program
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="cluster.launch", description=docstring(__file__).splitlines()[0])
    parser.add_argument("file", type=Path, nargs="+")
    bad = 0
    for path in parser.parse_args(arguments).file:
        try:
            faults = list(problems(path))
        except (OSError, UnicodeDecodeError) as error:
            faults = [f"cannot be read: {error}"]
        for problem in faults:
            bad_input(f"{path}: {problem}")
        if not faults:
            print(f"{path}: good")
        bad += len(faults)
    return BAD_INPUT if bad else 0


if __name__ == "__main__":
    sys.exit(main())
