"""The Kubernetes objects in cluster/: read, patched as kustomize does, and held against KubeRay's schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonpatch
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PLAIN = sorted(path for path in CLUSTER.glob("*.yaml") if not path.name.startswith("ray-up-"))
OVERLAYS = sorted(path.parent for path in CLUSTER.glob("overlays/*/kustomization.yaml"))
_SCHEMAS = ROOT.parent / "shared" / "kuberay"

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    """The objects of a file."""
    return [tree for tree in yaml.safe_load_all(path.read_text()) if tree is not None]


def build(overlay: Path) -> list[Object]:
    """What an overlay makes of its resources: by kubectl where it is installed, else by `patched`."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return patched(overlay)
    words = [kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(overlay)]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    return [tree for tree in yaml.safe_load_all(made.stdout) if tree is not None]


def patched(overlay: Path) -> list[Object]:
    """The resources of an overlay with its JSON 6902 patches applied to the kinds that they name."""
    tree = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    assert tree.keys() <= {"apiVersion", "kind", "resources", "patches"}, f"{overlay}: more than `patched` knows"
    objects = [made for name in tree["resources"] for made in read(overlay / name)]
    for patch in tree["patches"]:
        assert patch.keys() == {"target", "patch"} and patch["target"].keys() == {"kind"}
        operations = yaml.safe_load(patch["patch"])
        hit = [made for made in objects if made["kind"] == patch["target"]["kind"]]
        assert hit, f"{overlay}: a patch without a target"
        for made in hit:
            jsonpatch.apply_patch(made, operations, in_place=True)
    return objects


def sources() -> Iterator[tuple[str, list[Object]]]:
    """By name, the objects of each file and of each overlay."""
    for path in PLAIN:
        yield path.name, read(path)
    for path in OVERLAYS:
        yield f"overlays/{path.name}", build(path)


def cluster_spec(made: Object) -> Object:
    """The cluster inside a RayJob or RayCluster."""
    spec: Object = made["spec"]["rayClusterSpec"] if made["kind"] == "RayJob" else made["spec"]
    return spec


def pod_templates(made: Object) -> dict[str, Object]:
    """By name, the pods that an object leads to."""
    if made["kind"] == "StatefulSet":
        return {made["metadata"]["name"]: made["spec"]["template"]}
    if made["kind"] not in ("RayJob", "RayCluster"):
        return {}
    spec = cluster_spec(made)
    found = {"head": spec["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    if "submitterPodTemplate" in made["spec"]:
        found["submitter"] = made["spec"]["submitterPodTemplate"]
    return found


def check_kuberay(made: Object) -> None:
    """Raises ValidationError as an API server with KubeRay's definitions would refuse; skips where they are absent."""
    path = _SCHEMAS / f"{made['kind']}.v1.schema.json"
    if not path.exists():
        pytest.skip(f"KubeRay's schema is not here: {path}")
    _validator(path).validate(made)


@lru_cache
def _validator(path: Path) -> jsonschema.Draft202012Validator:
    """Of an OpenAPI schema of a custom resource, as plain JSON Schema that refuses fields which it does not name."""
    schema = json.loads(path.read_text())
    _close(schema)
    return jsonschema.Draft202012Validator(schema)


def _close(node: Object) -> None:
    """Closes one schema in place: unknown fields, defaults that a server fills in, int-or-string, nullable."""
    properties = node.get("properties", {})
    if properties and not node.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in node:
        node["additionalProperties"] = False
    if "required" in node:
        node["required"] = [name for name in node["required"] if "default" not in properties.get(name, {})]
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node["type"] = ["integer", "string"]
    if node.pop("nullable", False) and "type" in node:
        node["type"] = [*([node["type"]] if isinstance(node["type"], str) else node["type"]), "null"]
    if node.get("format") in ("int32", "int64", "double"):
        del node["format"]
    inner = [
        *properties.values(),
        *(node[k] for k in ("items", "additionalProperties") if isinstance(node.get(k), dict)),
    ]
    for child in inner:
        _close(child)
