"""The overlay `local`, run as a kubelet would: installation, upgrade of everything, a pool that grows and shrinks.

All of it happens once, under load; each test then asks about one thing that happened.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from tests.deploy import metrics, policies, readme
from tests.deploy.kubelet import observe
from tests.deploy.kubelet.cluster import Cluster
from tests.deploy.kubelet.load import Call, Load, search
from tests.deploy.kubelet.pod import Pod
from tests.deploy.manifests import KUBERNETES, Manifests
from tests.deploy.network_policies import Edge
from tests.deploy.sandboxes import models, needs_sandbox
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

pytestmark = [needs_sandbox, pytest.mark.timeout(240)]
EMBED = "winnow.embed.v1.EmbedService/Embed"


@dataclass
class Story:
    """What happened."""

    manifests: Manifests
    installed_s: float = 0.0
    readme_said: str = ""
    first_search: retrieval_pb2.SearchResponse = field(default_factory=retrieval_pb2.SearchResponse)
    edges: set[Edge] = field(default_factory=set)
    exported: dict[str, frozenset[str]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    upgrade: tuple[float, float] = (0.0, 0.0)
    growth: tuple[float, float] = (0.0, 0.0)
    shrinking: tuple[float, float] = (0.0, 0.0)
    replaced: list[Pod] = field(default_factory=list)
    added: list[Pod] = field(default_factory=list)
    removed: list[Pod] = field(default_factory=list)
    first_calls_s: dict[str, float] = field(default_factory=dict)
    """New embed replica → seconds from ready to its first call."""
    pods: list[Pod] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    def failures(self, during: tuple[float, float]) -> list[Call]:
        """Calls that failed and were under way in a stretch of time."""
        return [c for c in self.calls if c.failure and c.began < during[1] and c.began + c.seconds > during[0]]

    def count(self, during: tuple[float, float]) -> int:
        """Calls that began in a stretch of time."""
        return sum(during[0] <= call.began < during[1] for call in self.calls)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    told = asyncio.run(tell(tmp_path_factory.mktemp("cluster"), models(tmp_path_factory)))
    seen = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in told.first_calls_s.items())
    print(
        f"\ninstalled in {told.installed_s:.1f} s; {len(told.calls)} calls,"
        f" {sum(c.failure is not None for c in told.calls)} failed; first call after ready: {seen}"
    )
    return told


async def tell(folder: Path, weights: Path) -> Story:
    loop = asyncio.get_running_loop()
    manifests = Manifests.render(KUBERNETES / "overlays" / "local")
    story = Story(manifests)
    async with Cluster(manifests, folder, weights) as cluster:
        began = loop.time()
        await cluster.apply()
        story.installed_s = loop.time() - began
        gateway = cluster.deployments["winnow-gateway"].current[0]
        story.readme_said = await gateway.execute(
            ["python", "-c", readme.first_search().replace("localhost", gateway.address)]
        )
        async with grpc.aio.insecure_channel(cluster.address("winnow-gateway")) as channel:
            retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            story.first_search = await retrieval.Search(search("the first"), timeout=60)
            await retrieval.ListCollections(retrieval_pb2.ListCollectionsRequest(), timeout=20)
        async with Load(cluster.address("winnow-gateway")) as load:
            await load.some(50)
            story.edges = observe.connections(cluster)
            story.exported = {
                pod.pods.name: metrics.names_in(observe.metrics(pod))
                for pod in cluster.pods
                if policies.module_of(pod.pods.main) and pod.pods.kind == "Deployment"
            }

            began = loop.time()
            story.replaced = [pod for d in cluster.deployments.values() for pod in d.current]
            await asyncio.gather(*(deployment.roll() for deployment in cluster.deployments.values()))
            await load.some(50)
            story.upgrade = (began, loop.time())

            began = loop.time()
            embed = cluster.deployments["winnow-embed"]
            scaling = asyncio.create_task(embed.scale(3))
            await cluster.until(lambda: len(embed.current) == 3)
            story.added = embed.current[1:]
            await asyncio.gather(scaling, *(first_call(cluster, pod, story) for pod in story.added))
            story.growth = (began, loop.time())

            began = loop.time()
            before = embed.current
            await embed.scale(1)
            await load.some(50)
            story.shrinking = (began, loop.time())
            story.removed = [pod for pod in before if pod not in embed.current]
        story.calls = load.calls
        story.pods = list(cluster.pods)
        story.logs = {pod.name: pod.log() for pod in cluster.pods if pod.pods.kind != "Job"}
    return story


async def first_call(cluster: Cluster, pod: Pod, story: Story) -> None:
    await cluster.until(lambda: pod.ready)
    async with asyncio.timeout(60):
        while await asyncio.to_thread(observe.answered, pod, EMBED) == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # its metrics are all that a pod lets us see
    story.first_calls_s[pod.name] = asyncio.get_running_loop().time() - pod.became_ready


def test_an_empty_cluster_answers_its_first_search(story: Story) -> None:
    assert len(story.first_search.hits) == 3
    assert not story.first_search.degraded


def test_the_first_search_of_the_readme_finds_its_document(story: Story) -> None:
    assert "text:" in story.readme_said
    assert "score:" in story.readme_said


def test_the_job_filled_the_volume_before_the_workers_loaded(story: Story) -> None:
    workers = [pod for pod in story.pods if pod.pods.name in {"winnow-embed", "winnow-rerank"}]
    assert [pod.restarts for pod in workers] == [0] * len(workers)


def test_no_call_fails_while_every_deployment_is_upgraded(story: Story) -> None:
    assert story.failures(story.upgrade) == []
    assert story.count(story.upgrade) > 50


def test_every_pod_was_replaced_and_had_time_to_end_in_order(story: Story) -> None:
    assert {pod.pods.name for pod in story.replaced} == {"winnow-gateway", "winnow-embed", "winnow-rerank"}
    for pod in story.replaced:
        assert pod.exits == [0], story.logs[pod.name]
        assert pod.ended_after < pod.pods.spec["terminationGracePeriodSeconds"]


def test_no_call_fails_while_the_pool_grows(story: Story) -> None:
    assert story.failures(story.growth) == []
    assert story.count(story.growth) > 50


def test_new_replicas_get_calls_within_ten_seconds(story: Story) -> None:
    assert set(story.first_calls_s) == {pod.name for pod in story.added}
    assert len(story.first_calls_s) == 2
    assert max(story.first_calls_s.values()) < 10.0


def test_no_call_fails_while_the_pool_shrinks(story: Story) -> None:
    assert story.failures(story.shrinking) == []
    assert story.count(story.shrinking) > 50
    assert [pod.exits for pod in story.removed] == [[0], [0]]


def test_no_probe_ever_restarted_a_container(story: Story) -> None:
    assert {pod.name: pod.restarts for pod in story.pods if pod.restarts} == {}


def test_connections_are_those_that_policies_allow_and_settings_ask_for(story: Story) -> None:
    assert story.edges == policies.code_edges(story.manifests)


def test_running_workers_export_what_autoscalers_read(story: Story, tmp_path: Path) -> None:
    m = Manifests.compose(tmp_path, "local", ("keda",))
    for scaler in m.all("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            wanted = metrics.read(trigger["metadata"]["query"])
            assert wanted <= story.exported[scaler["spec"]["scaleTargetRef"]["name"]]


def test_nothing_is_written_outside_the_volumes(story: Story) -> None:
    assert not [log for log in story.logs.values() if "Read-only file system" in log]
