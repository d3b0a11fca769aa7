"""A real model in int8, served by a real process: built once, found again, near float32, the same in any batch."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def engine(golden, launch, minilm_arguments, tmp_path_factory):
    """The second start on one cache, and what the first one logged."""
    env = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("xdg"))}
    arguments = (*minilm_arguments, "--quantize", "int8")
    first = launch(*arguments, "--dry-run", env=env)
    built = first.wait_for("int8 against float32", timeout=120)["message"]
    assert first.wait(60) == 0
    engine = launch(*arguments, env=env)
    engine.wait_for("Ready", timeout=60)
    return engine, built


def vectors(engine, texts):
    reply = engine.post("/embed", {"inputs": texts, "truncate": True})
    assert reply.status == 200
    return np.array(reply.json)


def test_the_second_start_finds_what_the_first_one_built(engine):
    process, built = engine
    found = process.wait_for("int8 against float32")["message"]
    place = built.rpartition(" stored in ")[2]
    assert place.endswith(".safetensors")
    assert found.endswith(f" from {place}")


def test_info_says_how_near_it_is(engine):
    cosine = engine[0].get("/info").json["engine"]["quantize_cosine"]
    assert 0.97 <= cosine["min"] <= cosine["mean"] < 1
    assert cosine["mean"] >= 0.995


def test_vectors_are_near_the_reference(engine, golden):
    items = [item for item in golden["items"] if item["text"]]
    cosines = [float(vectors(engine[0], [item["text"]])[0] @ np.array(item["vec"])) for item in items]
    assert min(cosines) >= 0.985
    assert np.mean(cosines) >= 0.9955


def test_a_vector_is_the_same_alone_and_in_a_batch(engine, golden):
    texts = [item["text"] for item in golden["items"] if item["text"]][:24]
    together = vectors(engine[0], texts)
    alone = np.concatenate([vectors(engine[0], [text]) for text in texts])
    assert np.abs(together - alone).max() <= 1e-6
