import json

import numpy as np

from gateway.http.embeddings import floats
from winnow.embed.v1 import embed_pb2


def test_floats_are_read_back_bit_by_bit() -> None:
    random = np.random.default_rng(0)
    edges = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-38, 0.1, 1 / 3, -10.0, 1e-10, -0.0], "<f4")
    for values in (edges, random.standard_normal(2000).astype("<f4"), (random.random(2000) ** 9).astype("<f4")):
        written = floats(embed_pb2.Embedding(data=values.tobytes()))
        assert np.array(json.loads(written), "<f4").tobytes() == values.tobytes()
