"""The worked examples in ``cluster/``: held against Ray's own schema and the fields of KubeRay's RayJob, and every command
in them against this package's command line."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from autocomp.cli import app
from autocomp.hardware.profiles import find_profile
from autocomp.search.workers import LABEL

FOLDER = Path(__file__).parents[1] / "cluster"
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]


class Strict(BaseModel):
    """What is not a field of Kubernetes' or KubeRay's is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Port(Strict):
    container_port: int
    name: str


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Container(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    image: str
    ports: list[Port] = []
    resources: Resources


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    node_selector: dict[str, str] = {}


class Pod(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: Pod


class WorkerGroup(HeadGroup):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int


class ClusterSpec(Strict):
    ray_version: str
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    active_deadline_seconds: Annotated[int, Field(gt=0)]
    ray_cluster_spec: ClusterSpec


class RayJob(Strict):
    """Of KubeRay's API ray.io/v1, the fields that the example has."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: JobSpec


def read(name: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return found


def check_search(arguments: list[str]) -> None:
    """That the command line would take it."""
    assert arguments[0] == "search"
    typer.main.get_command(app).commands["search"].make_context("search", arguments[1:])  # type: ignore[attr-defined]


def check_label(text: str) -> None:
    """That a node gets the label of a target that there is."""
    (label,) = re.findall(rf"{LABEL}[\w-]+", text)
    find_profile(label.removeprefix(LABEL))


def test_the_example_for_ray_up_keeps_rays_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="Ray is not installed; pip install 'autocomp[ray]'")
    ray = find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed; pip install 'autocomp[ray]'")
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    document = read("ray-up.yaml")
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "headers": []}, schema)
    check_label(json.dumps(document))


def test_the_example_for_kuberay_has_the_fields_of_a_ray_job() -> None:
    document = RayJob.model_validate(read("ray-job.yaml"))
    groups = document.spec.ray_cluster_spec.worker_group_specs
    for group in groups:
        assert group.min_replicas <= group.replicas <= group.max_replicas
    python, dash, module, what, _, storage, *search = shlex.split(document.spec.entrypoint)
    assert (python, dash, module, what) == ("python", "-m", "autocomp.jobs.on_cluster", "search")
    assert storage.startswith("s3://")
    check_search(search)
    (labelled,) = (group.ray_start_params["resources"] for group in groups if "resources" in group.ray_start_params)
    assert json.loads(json.loads(labelled)) == {f"{LABEL}cpu": 1}


def test_the_page_shows_commands_that_there_are() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    searches = re.findall(r"^autocomp (?:submit .* -- )?(search .*)$", text, re.MULTILINE)
    assert len(searches) >= 2
    for line in searches:
        check_search(shlex.split(line))
    options = {
        option
        for name in ("search", "submit")
        for parameter in typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    named = set(re.findall(r"`(--[a-z-]+)", text)) - {"--dashboard-host"}
    assert named <= options
    check_label(re.findall(r"^ray start .*$", text, re.MULTILINE)[-1])
