"""Machines come and go while a run goes on: several raylets on this one, as in a cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, config_of, undisturbed_losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # Ray lets go of its processes without waiting for them.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for workers, and no nodes yet."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def program(cluster: Any, tiny_tree: dict[str, Any], tmp_path: Path) -> Iterator[Program]:
    program = Program(tiny_tree, tmp_path, RAY_ADDRESS=cluster.address)
    yield program
    program.end()


def drain(cluster: Any, node: Any, seconds: int) -> None:
    """Tells the cluster that a machine will be taken away, as a cloud's notice does."""
    ray = Path(sys.executable).with_name("ray")
    words = ["--address", cluster.address, "--node-id", node._node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run([ray, "drain-node", *words], check=True, capture_output=True)


def test_a_run_goes_on_with_fewer_machines_and_grows_again_and_the_losses_do_not_show_it(
    cluster: Any, program: Program
) -> None:
    """Two workers; one machine's raylet is killed; another comes; it is told that it will be taken away."""
    _, second = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    driver = program.start()
    program.wait_for("checkpoint", 2)
    cluster.remove_node(second, allow_graceful=False)
    killed_at = time.time()

    alone = program.wait_for("recovery", workers=1)
    (lost,) = program.of_kind("fault")
    assert lost["fault"] == "node" and "was lost" in lost["what"]
    assert abs(lost["time"] - killed_at) < 15 and alone["lost_steps"] < 20

    third = cluster.add_node(num_cpus=1)
    grown = program.wait_for("resized", workers=2)
    assert grown["workers_before"] == 1
    again = program.wait_for("started", 3)
    assert again["workers"] == 2
    saved = [event["step"] for event in program.of_kind("checkpoint")]
    assert again["step"] in saved  # growing costs no step
    program.wait_for("checkpoint", len(saved) + 1)

    drain(cluster, third, 120)
    moved = program.wait_for("recovery", fault="preempted", workers=1)
    (noticed,) = (event for event in program.of_kind("fault") if event["fault"] == "preempted")
    assert "will be taken away in 1" in noticed["what"]
    assert program.of_kind("recovery")[-1]["lost_steps"] == 0
    for back in (alone, moved):  # nobody waits for a machine that is gone, or will be
        assert back["breakdown"]["room found"] < 5

    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 143, program.said()
    for event in program.of_kind("recovery"):
        print(event["fault"], event["what"], event["seconds"], event["breakdown"])
    found = program.losses
    expected = undisturbed_losses(config_of(program), len(found))
    assert [found[step] for step in range(len(expected))] == pytest.approx(expected, rel=2e-3)
