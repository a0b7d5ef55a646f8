"""The component `tls` over the overlay `local`, run: certificates are renewed, and an authority retired, under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import trustme

from tests.deploy.kubelet.cluster import Cluster
from tests.deploy.kubelet.load import Load
from tests.deploy.kubelet.volumes import write_secret
from tests.deploy.manifests import Manifests
from tests.deploy.sandboxes import models, needs_sandbox
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

pytestmark = [needs_sandbox, pytest.mark.timeout(150)]


def secret(issuer: trustme.CA, name: str, *trusted: trustme.CA) -> dict[str, bytes]:
    """As cert-manager writes it: a certificate of `issuer` for `name`, and those who judge the other side."""
    leaf = issuer.issue_cert(name)
    return {
        "tls.crt": b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
        "tls.key": leaf.private_key_pem.bytes(),
        "ca.crt": b"".join(authority.cert_pem.bytes() for authority in trusted),
    }


def credentials(issuer: trustme.CA, *trusted: trustme.CA) -> grpc.ChannelCredentials:
    own = secret(issuer, "caller", *trusted)
    return grpc.ssl_channel_credentials(own["ca.crt"], own["tls.key"], own["tls.crt"])


async def refused(address: str, name: str, shown: grpc.ChannelCredentials | None) -> bool:
    """Whether a server lets nobody in who shows this."""
    options = [("grpc.ssl_target_name_override", name)]
    channel = grpc.aio.secure_channel(address, shown, options) if shown else grpc.aio.insecure_channel(address, options)
    async with channel:
        try:
            await embed_pb2_grpc.EmbedServiceStub(channel).GetModel(embed_pb2.GetModelRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return True
            raise
    return False


async def test_an_authority_is_retired_under_load_and_nobody_notices(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workers, callers, old, new = (trustme.CA() for _ in range(4))
    manifests = Manifests.compose(tmp_path / "composed", "local", ("tls",))
    async with Cluster(manifests, tmp_path / "cluster", models(tmp_path_factory)) as cluster:
        write_secret(cluster.secrets, "winnow-gateway-tls", secret(old, "winnow-gateway", workers, callers))
        write_secret(cluster.secrets, "winnow-embed-tls", secret(workers, "winnow-embed", old))
        await cluster.apply(without=frozenset({"winnow-rerank"}))
        gateway, (worker,) = cluster.address("winnow-gateway"), cluster.ready("winnow-embed")
        embed = f"{worker.address}:50051"
        assert not await refused(embed, "winnow-embed", credentials(old, workers))
        assert await refused(embed, "winnow-embed", credentials(callers, workers))
        assert not await refused(gateway, "winnow-gateway", credentials(callers, old))
        assert await refused(gateway, "winnow-gateway", None)

        async with Load(gateway, 3, ("Embed",), credentials(callers, old, new)) as load:
            await load.some(30)
            # In the order that an operator keeps: trust the new authority, use it, trust the old one no more.
            write_secret(cluster.secrets, "winnow-embed-tls", secret(workers, "winnow-embed", old, new))
            await renewed(load)
            write_secret(cluster.secrets, "winnow-gateway-tls", secret(new, "winnow-gateway", workers, callers))
            await renewed(load)
            write_secret(cluster.secrets, "winnow-embed-tls", secret(workers, "winnow-embed", new))
            await renewed(load)
        assert load.failures == []
        assert await refused(embed, "winnow-embed", credentials(old, workers))
        assert not await refused(embed, "winnow-embed", credentials(new, workers))
        assert not await refused(gateway, "winnow-gateway", credentials(callers, new))
        assert await refused(gateway, "winnow-gateway", credentials(callers, old))


async def renewed(load: Load) -> None:
    """Lets calls go on for longer than a connection from the gateway to a worker lasts (4 s and a tenth)."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 5.0
    while loop.time() < end:
        await load.some(1)
