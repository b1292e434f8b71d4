"""The manifests in cluster/: what an API server would take, what they promise of safety and size, versions, words."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from manifests import CLUSTER, OVERLAYS, PLAIN, ROOT, build, check_kuberay, cluster_spec, patched, pod_templates, read
from manifests import sources as all_sources

import scaleaudio
from scaleaudio.cli import app
from scaleaudio.config import load, parse_overrides
from scaleaudio.sweep import load_sweep

Object = dict[str, Any]
SOURCES = dict(all_sources())
README, DOCKERFILE = ((CLUSTER / name).read_text() for name in ("README.md", "Dockerfile"))
KUBERNETES = kubernetes_validate.latest_version()
RAY = [
    (name, made) for name, objects in SOURCES.items() for made in objects if made["kind"] in ("RayJob", "RayCluster")
]
PODS = [
    pytest.param(template, id=f"{name}-{pod}")
    for name, objects in SOURCES.items()
    for made in objects
    for pod, template in pod_templates(made).items()
]
each_ray = pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in RAY])
each_pod = pytest.mark.parametrize("template", PODS)


def locked(name: str) -> str:
    """The version of a package in requirements.lock."""
    found = re.search(rf"^{name}==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, name
    return found[1]


def containers(template: Object) -> list[Object]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def test_there_are_manifests_and_overlays() -> None:
    assert {path.name for path in PLAIN} >= {"rayjob-pretrain.yaml", "rayjob-sweep.yaml", "raycluster.yaml"}
    assert {path.name for path in OVERLAYS} >= {"kueue", "volcano"}


@each_ray
def test_a_server_with_kuberay_takes_it(made: Object) -> None:
    check_kuberay(made)


def test_an_unknown_field_and_a_number_for_text_would_be_refused() -> None:
    made = read(CLUSTER / "raycluster.yaml")[0]
    for change in ({"enableInTreeAutoscalling": True}, {"rayVersion": 2.6}):
        wrong = copy.deepcopy(made)
        wrong["spec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            check_kuberay(wrong)
    wrong = copy.deepcopy(made)
    wrong["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay(wrong)


@each_pod
def test_kubernetes_takes_every_pod(template: Object) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"} | template["metadata"],
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kubernetes_takes_every_other_object() -> None:
    others = [made for objects in SOURCES.values() for made in objects if made["apiVersion"] != "ray.io/v1"]
    assert {made["kind"] for made in others} >= {"Namespace", "ServiceAccount", "NetworkPolicy", "StatefulSet"}
    for made in others:
        kubernetes_validate.validate(made, KUBERNETES, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_kubectl_and_the_patches_by_themselves_agree(overlay: Path) -> None:
    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(made["kind"], made["metadata"]["name"]): made for made in objects}

    assert by_name(build(overlay)) == by_name(patched(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_of_a_job_fit_the_sweep_too(overlay: Path, tmp_path: Path) -> None:
    text = (overlay / "kustomization.yaml").read_text()
    for path in overlay.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    text = text.replace("../../access.yaml", str(CLUSTER / "access.yaml"))
    (tmp_path / "kustomization.yaml").write_text(
        text.replace("../../rayjob-pretrain.yaml", str(CLUSTER / "rayjob-sweep.yaml"))
    )
    made = patched(tmp_path)
    check_kuberay(next(one for one in made if one["kind"] == "RayJob"))


@each_pod
def test_no_container_is_root_or_may_become_it_or_writes_its_image(template: Object) -> None:
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] and pod["runAsUser"] > 0 and pod["seccompProfile"]["type"] == "RuntimeDefault"
    for container in containers(template):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] and not own.get("privileged")
    assert not any(template["spec"].get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert not any("hostPath" in volume for volume in template["spec"]["volumes"])


@each_pod
def test_requests_are_limits(template: Object) -> None:
    for container in containers(template):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"] and {"cpu", "memory"} <= resources["limits"].keys()


@each_pod
def test_what_is_mounted_is_there(template: Object) -> None:
    volumes = {volume["name"] for volume in template["spec"]["volumes"]} | {"data"}  # a StatefulSet's claim
    assert {mount["name"] for one in containers(template) for mount in one["volumeMounts"]} <= volumes


@each_ray
def test_the_head_trains_nothing_and_workers_are_bounded(made: Object) -> None:
    spec = cluster_spec(made)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if spec["enableInTreeAutoscaling"]:
        options = spec["autoscalerOptions"]
        assert options["resources"]["requests"] == options["resources"]["limits"]
        assert options["securityContext"]["readOnlyRootFilesystem"]
        for template in pod_templates(made).values():  # autoscaler v2
            assert template["spec"]["restartPolicy"] == "Never"


@each_ray
def test_ray_pods_have_probes_shared_memory_and_the_label_that_opens_the_network(made: Object) -> None:
    for name, template in pod_templates(made).items():
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "scaleaudio"
        if name == "submitter":
            continue
        (container,) = template["spec"]["containers"]
        assert container["livenessProbe"] and container["readinessProbe"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "emptyDir" in volumes[mounts["/tmp"]]


@each_ray
def test_a_token_is_asked_for_and_no_service_is_open_to_the_world(made: Object) -> None:
    spec = cluster_spec(made)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and "enableIngress" not in spec["headGroupSpec"]


def test_nobody_gets_in_but_pods_of_the_jobs_and_the_operator() -> None:
    policies = {
        made["metadata"]["name"]: made["spec"] for made in read(CLUSTER / "access.yaml") if "Policy" in made["kind"]
    }
    assert policies["deny-ingress"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    peers, operator = policies["ray"]["ingress"]
    assert peers == {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "scaleaudio"}}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    (who,) = operator["from"]
    assert all(selector["matchLabels"] for selector in (who["podSelector"], who["namespaceSelector"]))
    assert f"--namespace {who['namespaceSelector']['matchLabels']['kubernetes.io/metadata.name']} " in README
    assert not any(
        "ipBlock" in peer for policy in policies.values() for way in policy.get("ingress", []) for peer in way["from"]
    )


@pytest.mark.parametrize("name", [path.name for path in PLAIN if path.name.startswith("ray")])
def test_gpu_workers_go_where_gpus_and_spot_machines_are(name: str) -> None:
    (group,) = cluster_spec(read(CLUSTER / name)[0])["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "spot"} <= {one["key"] for one in pod["tolerations"]}
    assert pod["terminationGracePeriodSeconds"] >= 60 and group["minReplicas"] < group["maxReplicas"]


def test_the_files_differ_in_nothing_but_what_they_are_for() -> None:
    pretrain, sweep, stays = (read(CLUSTER / f"{n}.yaml")[0] for n in ("rayjob-pretrain", "rayjob-sweep", "raycluster"))
    assert cluster_spec(pretrain) == cluster_spec(sweep)
    spec = dict(cluster_spec(stays))
    assert spec.pop("gcsFaultToleranceOptions")["redisAddress"] == "redis:6379"
    assert spec == cluster_spec(pretrain)
    assert pretrain["spec"].keys() == sweep["spec"].keys()


@each_ray
def test_versions_are_those_of_the_lock(made: Object) -> None:
    assert cluster_spec(made)["rayVersion"] == locked("ray")
    images = {one["image"] for template in pod_templates(made).values() for one in containers(template)}
    assert images == {f"registry.example.com/scaleaudio:{scaleaudio.__version__}"}


def test_jobs_end_and_are_cleared_away() -> None:
    for made in (read(CLUSTER / f"rayjob-{name}.yaml")[0] for name in ("pretrain", "sweep")):
        assert made["spec"]["shutdownAfterJobFinishes"] and made["spec"]["ttlSecondsAfterFinished"] > 0
        assert made["spec"]["backoffLimit"] > 0
    (ruled,) = SOURCES["overlays/deletion-rules"]
    assert not ruled["spec"].keys() & {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}  # refused beside rules
    rules = ruled["spec"]["deletionStrategy"]["deletionRules"]
    for status in ("SUCCEEDED", "FAILED"):  # the cluster first
        after = {
            rule["policy"]: rule["condition"]["ttlSeconds"]
            for rule in rules
            if rule["condition"]["jobStatus"] == status
        }
        assert after["DeleteCluster"] < after["DeleteSelf"]


def words(entrypoint: str) -> list[str]:
    """The words of the program's last command in an entrypoint, after `python -m scaleaudio`."""
    split = shlex.split(entrypoint)
    if split[:2] == ["bash", "-c"]:
        split = shlex.split(split[2].rpartition("exec ")[2])
    assert split[:3] == ["python", "-m", "scaleaudio"]
    return split[3:]


def parsed(entrypoint: str) -> tuple[str, dict[str, Any]]:
    """The verb and its parameters, as the command line takes them."""
    verb, *rest = words(entrypoint)
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return verb, command.make_context(verb, rest).params


JOBS = [pytest.param(made, id=name) for name, made in RAY if made["kind"] == "RayJob"]


@pytest.mark.parametrize("made", [job for job in JOBS if "sweep" not in str(job.id)])
def test_entrypoints_are_commands_of_this_program_with_a_config_of_the_image(made: Object) -> None:
    verb, params = parsed(made["spec"]["entrypoint"])
    path = Path(str(params["config"]).replace("/app/", f"{ROOT}/"))
    config = load(path, parse_overrides(params["overrides"] or []))
    assert verb == "pretrain" and params["out"].rpartition("/")[2] == config.name
    (group,) = cluster_spec(made)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.launch.workers == group["maxReplicas"] <= config.data.lanes
    assert config.launch.cpus_per_worker <= float(limits["cpu"])


def test_the_sweep_is_a_command_whose_data_and_labelled_folder_every_node_reaches() -> None:
    (made,) = read(CLUSTER / "rayjob-sweep.yaml")
    verb, params = parsed(made["spec"]["entrypoint"])
    path = Path(str(params["config"]).replace("/app/", f"{ROOT}/"))
    plan = load_sweep(path, parse_overrides(params["overrides"] or []))
    assert verb == "sweep" and params["out"].rpartition("/")[2] == plan.base.name
    assert plan.base.probe.tasks == ("s3://BUCKET/labelled:label",) and plan.base.data.url == "s3://BUCKET/shards"
    (group,) = cluster_spec(made)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert plan.base.launch.workers == 1 and plan.base.launch.cpus_per_worker <= float(limits["cpu"])


def test_the_image_is_python_of_the_lock_pinned_and_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    minor = re.search(r"--python-version (3\.\d+)", (ROOT / "Makefile").read_text())
    assert minor and len(set(bases)) == 1 and re.fullmatch(rf"python:{re.escape(minor[1])}\.\d+-slim-\w+", bases[0])
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert "--constraint requirements.lock" in DOCKERFILE and f"scaleaudio:{scaleaudio.__version__} " in DOCKERFILE


def test_all_that_the_image_installs_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"--extra (\w+)", DOCKERFILE)
    assert set(extras) <= project["optional-dependencies"].keys()
    wanted = project["dependencies"] + [one for extra in extras for one in project["optional-dependencies"][extra]]
    for requirement in wanted:
        locked(re.split(r"[\[<>=; ]", requirement)[0].replace("_", "[-_]"))


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == kept and all((ROOT / name).exists() for name in kept)
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


def test_the_linter_has_nothing_to_say_of_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    said = subprocess.run([linter, "--no-color", str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_the_virtual_machines(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load((CLUSTER / f"ray-up-{cloud}.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(tree)))
    kinds = tree["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0} and kinds["head"]["max_workers"] == 0
    assert 1 <= kinds["gpu"]["min_workers"] < kinds["gpu"]["max_workers"] == tree["max_workers"]
    assert all("RAY_AUTH_MODE=token" in tree[f"{one}_start_ray_commands"][1] for one in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in tree["head_start_ray_commands"][1]


def test_the_same_tool_installs_the_image_and_the_virtual_machines() -> None:
    texts = [DOCKERFILE, *((CLUSTER / f"ray-up-{cloud}.yaml").read_text() for cloud in ("aws", "gcp"))]
    assert len({re.search(r"uv==(\S+)", text)[1] for text in texts}) == 1  # type: ignore[index]


def test_the_guide_names_files_that_are_there_and_versions_that_are() -> None:
    texts = [README, *(path.read_text() for path in CLUSTER.rglob("*.yaml"))]
    named = {name.rstrip(".,;") for text in texts for name in re.findall(r"cluster/[\w./*-]+", text)}
    assert len(named) > 10 and all(any(ROOT.glob(name)) for name in named), named
    assert set(re.findall(r"scaleaudio:(\d[\w.]*)", README)) == {scaleaudio.__version__}


def test_the_guide_has_five_commands_from_nothing_to_a_job_twice() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README.partition("## `ray job submit`")[0], re.DOTALL)
    assert [len(block.splitlines()) for block in blocks] == [5, 5]


@pytest.mark.parametrize("clips_per_second", [2_000, 16_000, 64_000])
def test_the_sizes_follow_from_their_formulas(clips_per_second: int) -> None:
    cores, network, hours = (
        clips_per_second / 1_700,
        clips_per_second * 172e3 / 1e9,
        10e12 / (clips_per_second * 172e3) / 3600,
    )
    column = {2_000: 2, 16_000: 3, 64_000: 4}[clips_per_second]
    cells = [row.split("|") for row in README.splitlines() if row.startswith("| ") and row.count("|") == 6]
    rows = {row[1].strip(): row[column + 1] for row in cells}
    assert float(rows["cores that decode"]) == pytest.approx(cores, rel=0.05)
    assert float(rows["network"].split()[0]) == pytest.approx(network, rel=0.05)
    took, unit = rows["a pass over 10 TB (58 million clips)"].split()
    assert float(took) / {"h": 1, "min": 60}[unit] == pytest.approx(hours, rel=0.05)


@pytest.mark.parametrize(("name", "megabytes"), [("real_small", 10), ("byol_audio_ntt", 345)])
def test_a_checkpoint_has_the_size_that_the_guide_gives(name: str, megabytes: float, tmp_path: Path) -> None:
    config = load(ROOT / "configs" / f"{name}.yaml", {"frontend.mean": -8.0, "frontend.std": 4.0})
    parameters = list(config.build().parameters())
    counted = sum((12 if one.requires_grad else 4) * one.numel() for one in parameters)
    assert counted / 1e6 == pytest.approx(megabytes, rel=0.02) and f"{megabytes} MB for `{name}.yaml`" in README


FEW = [
    "launch.workers=1",
    "launch.cpus_per_worker=1",
    "launch.engine=plain",
    "schedule.steps=2",
    "schedule.warmup_steps=1",
]


def ran(command: list[str], folder: Path) -> str:
    """What a command prints in `folder`, with a Ray of its own, once it has succeeded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    environment = kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_of_the_job_takes_steps(shards: Path, tmp_path: Path) -> None:
    """As it stands, but for the bucket, the number of workers and of steps."""
    (entrypoint,) = (made["spec"]["entrypoint"] for made in read(CLUSTER / "rayjob-pretrain.yaml"))
    command = entrypoint.replace("/app/", f"{ROOT}/").replace("s3://BUCKET/shards", str(shards))
    command = command.replace("s3://BUCKET", str(tmp_path)).replace("=/cache", f"={tmp_path}/cache")
    few = [*FEW, "data.global_batch=8", "data.lanes=2"]
    words = shlex.split(command)
    assert "finished at step 2" in ran([*words[:-2], *few, *words[-2:]], tmp_path)


@pytest.mark.slow
def test_the_command_of_the_job_on_kind_makes_its_corpus_and_takes_steps(tmp_path: Path) -> None:
    (made,) = (made for made in SOURCES["overlays/kind"] if made["kind"] == "RayJob")
    command = made["spec"]["entrypoint"].replace("/app/", f"{ROOT}/").replace("/shared", str(tmp_path))
    bash, option, script = shlex.split(command.replace("1200", "120"))
    for again in (False, True):
        said = ran([bash, option, f"{script} {' '.join(FEW)}"], tmp_path)
        assert "finished at step 2" in said and ("120 clips in demo/corpus" in said) != again
