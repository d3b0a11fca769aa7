"""Fetching models from a hub on loopback, in this process: what is asked for, refused and let into the cache."""

import json

import huggingface_hub
import pytest
from huggingface_hub import constants
from tests.fixtures.hub_server import COMMIT, OTHER, StandInHub

from tei_engine.errors import StartError
from tei_engine.models import hub_transfer
from tei_engine.models.hub import HubOptions, fetch

WEIGHTS = "model.safetensors"
SMALL = ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"]
SMALL += ["config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json"]


@pytest.fixture
def hub(tiny_folder, monkeypatch, tmp_path):
    """A hub that has acme/tiny, for the client library the only one. Nobody waits before trying again."""
    with StandInHub.of(tiny_folder("bert-mean")).serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_transfer, "_WAITS", (0.0, 0.0, 0.0))
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(hub, cache):
    """Fetch acme/tiny."""

    def run(*, revision=None, model="acme/tiny", **options):
        return fetch(model, revision=revision, options=HubOptions(cache=str(cache), **options))

    return run


@pytest.fixture
def refusal(load):
    """The one line that a fetch of acme/tiny fails with."""

    def run(**options):
        with pytest.raises(StartError) as caught:
            load(**options)
        assert str(caught.value) == "Could not download acme/tiny"
        [reason] = caught.value.causes
        assert "\n" not in reason
        return reason

    return run


def blobs(cache):
    return cache / "models--acme--tiny" / "blobs"


def left_over(cache):
    return [path.name for path in cache.rglob("*") if path.name.endswith((".incomplete", ".tmp"))]


def snapshot_of(cache, commit=COMMIT):
    return cache / "models--acme--tiny" / "snapshots" / commit


def begun_with(hub, cache, data):
    """Leave `data` as an earlier attempt at the weights."""
    blobs(cache).mkdir(parents=True)
    (blobs(cache) / f"{hub.etag(WEIGHTS)}.incomplete").write_bytes(data)


def change_config(hub, **changes):
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | changes).encode()


def test_small_files_come_first_and_the_weights_last(load, hub, cache):
    assert load() == (snapshot_of(cache), COMMIT)
    assert hub.fetched() == [*SMALL, WEIGHTS]
    hub.seen.clear()
    assert load() == load(offline=True) == (snapshot_of(cache), COMMIT)
    assert hub.seen == []


def test_a_hub_that_cannot_begin_in_the_middle(load, hub, cache):
    hub.takes_ranges = False
    begun_with(hub, cache, hub.files[WEIGHTS][:1000])
    load()
    assert hub.ranges(WEIGHTS) == ["bytes=1000-"]
    assert (blobs(cache) / hub.etag(WEIGHTS)).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize(("size", "ranges"), [(1000, ["bytes=1000-", None]), (160_048, [None]), (200_000, [None])])
def test_a_damaged_beginning_is_thrown_away(load, hub, cache, size, ranges):
    begun_with(hub, cache, b"\0" * size)
    load()
    assert hub.ranges(WEIGHTS) == ranges
    assert (blobs(cache) / hub.etag(WEIGHTS)).read_bytes() == hub.files[WEIGHTS]
    assert not left_over(cache)


def test_a_whole_beginning_needs_only_its_check(load, hub, cache):
    begun_with(hub, cache, hub.files[WEIGHTS])
    load()
    assert hub.ranges(WEIGHTS) == []
    assert not left_over(cache)


def test_a_blob_that_lost_its_content_is_fetched_again(load, hub, cache):
    blobs(cache).mkdir(parents=True)
    (blobs(cache) / hub.etag(WEIGHTS)).touch()
    load()
    assert (blobs(cache) / hub.etag(WEIGHTS)).read_bytes() == hub.files[WEIGHTS]


def test_connections_that_break_are_made_again_as_long_as_something_comes(load, hub, cache):
    hub.cuts[WEIGHTS] = 30_000
    load()
    assert hub.ranges(WEIGHTS) == [None, *(f"bytes={at}-" for at in range(30_000, 160_000, 30_000))]
    assert not left_over(cache)


def test_connections_that_bring_nothing_are_given_up(refusal, load, hub, cache):
    hub.cuts[WEIGHTS] = 0
    assert refusal().startswith(f"{hub.storage_url} could not be reached: "), "not the hub itself"
    assert hub.ranges(WEIGHTS) == [None] * 4
    hub.cuts.clear()
    load()


@pytest.mark.parametrize("lists_sizes", [True, False])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_an_altered_answer_does_not_enter_the_cache(load, refusal, hub, cache, name, lists_sizes):
    hub.lists_sizes = lists_sizes
    hub.altered[name] = hub.files[name][:-1] + b"!"
    assert refusal() == f"what the hub sent as {name} is not that file: its checksum differs"
    assert not (blobs(cache) / hub.etag(name)).exists()
    assert not left_over(cache)
    hub.altered.clear()
    load()


def test_a_shortened_or_lengthened_answer_does_not_enter_the_cache(load, refusal, hub, cache):
    hub.altered[WEIGHTS] = hub.files[WEIGHTS][:100_000]
    assert refusal() == f"{WEIGHTS} ended after 100000 of 160048 bytes"
    hub.altered[WEIGHTS] = hub.files[WEIGHTS] + b"more"
    assert refusal() == f"the hub sent more or other parts of {WEIGHTS} than there are"
    assert not (blobs(cache) / hub.etag(WEIGHTS)).exists()
    with pytest.raises(StartError, match=r"missing config\.json, tokenizer\.json, model\.safetensors"):
        load(offline=True)
    hub.altered.clear()
    load()


@pytest.mark.parametrize(
    ("revision", "commit"), [(OTHER, OTHER), ("main", COMMIT), ("v1.0", COMMIT), ("refs/pr/3", OTHER)]
)
def test_revisions(load, hub, cache, revision, commit):
    assert load(revision=revision) == (snapshot_of(cache, commit), commit)
    assert load(revision=revision, offline=True)[1] == commit
    assert [path.name for path in snapshot_of(cache).parent.iterdir()] == [commit]


@pytest.mark.parametrize("revision", ["gone", "f" * 40])
def test_revisions_that_are_not_there(refusal, revision):
    assert refusal(revision=revision) == f"the hub has no revision {revision} of acme/tiny"


@pytest.mark.parametrize("revision", ["../../main", "/etc", "a//b", "", "main\n", "a b"])
def test_what_is_no_revision_is_not_asked_for(load, hub, revision):
    with pytest.raises(StartError, match="is not a revision"):
        load(revision=revision)
    assert hub.seen == []


def test_a_private_or_gated_model_asks_for_a_credential(load, refusal, hub, cache, tmp_path, monkeypatch):
    hub.credential = "hf_right"
    assert refusal() == (
        "the hub has no model acme/tiny, or a private one (401), "
        "which needs a credential as HF_TOKEN (none is given)"
    )
    assert refusal(token="hf_wrong").endswith("as HF_TOKEN (the one given has no access)")
    hub.is_gated = True
    assert refusal() == (
        f"acme/tiny is gated (401): accept its terms at {hub.url}/acme/tiny "
        "and give a credential of that account as HF_TOKEN (none is given)"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refusal().startswith("acme/tiny is gated (403)")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_right\n")
    load()


def test_a_hub_that_refuses_or_talks_nonsense(load, refusal, hub):
    with pytest.raises(StartError) as caught:
        load(model="acme/gone")
    assert caught.value.causes[0].startswith("the hub has no model acme/gone, or a private one (404)")
    hub.listing_status = 403
    assert refusal().startswith(f"{hub.url} refuses access to acme/tiny (403), which depends on the credential")
    hub.listing_status = 503
    assert refusal() == f"{hub.url} answered 503 Service Unavailable"
    hub.listing_status = 200
    hub.listing_body = b"<html>please log in to the wireless network</html>"
    assert refusal().startswith(f"{hub.url} is no hub: its answer is not a listing")
    hub.listing_body = json.dumps({"id": "acme/tiny", "sha": "../..", "siblings": []}).encode()
    assert refusal() == f"{hub.url} did not say which commit main is"


def test_a_password_in_the_endpoint_is_not_shown(refusal, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("://", "://me:swordfish@"))
    hub.listing_status = 500
    assert refusal() == f"{hub.url} answered 500 Internal Server Error"


def test_a_file_that_is_refused(load, refusal, hub):
    hub.file_status[WEIGHTS] = 500
    assert refusal() == f"{hub.url} answered 500 Internal Server Error for {WEIGHTS}"
    assert hub.fetched().count(WEIGHTS) == 4, "asked again a few times"
    hub.seen.clear()
    hub.file_status[WEIGHTS] = 403
    assert refusal().startswith(f"{hub.url} refuses access to acme/tiny (403)")
    assert hub.fetched().count(WEIGHTS) == 1, "that does not pass by itself"
    hub.file_status.clear()
    load()


def test_a_hub_that_lists_no_sizes_is_asked_for_each(load, hub, cache):
    hub.lists_sizes = False
    load()
    assert hub.fetched(method="HEAD") == hub.fetched() == [*SMALL, WEIGHTS]
    assert (blobs(cache) / hub.etag(WEIGHTS)).read_bytes() == hub.files[WEIGHTS]


def test_a_mirror_with_etags_of_its_own(load, hub, cache):
    """Its checksums say nothing, so the size has to do; and what is no file name never becomes one."""
    hub.etag = lambda name: f"../{len(hub.files[name])}"
    with pytest.raises(StartError) as caught:
        load()
    assert caught.value.causes == (f"{hub.url} told no usable etag of config.json",)
    hub.etag = lambda name: f"mirror-{len(hub.files[name])}"
    load()
    assert (blobs(cache) / "mirror-160048").read_bytes() == hub.files[WEIGHTS]


def test_files_that_are_needed_and_not_there(load, hub):
    del hub.files["tokenizer.json"]
    with pytest.raises(StartError, match=r"acme/tiny cannot be used: it lacks tokenizer\.json"):
        load()
    assert WEIGHTS not in hub.fetched(), "nobody waits for weights that are of no use"


def test_shards(load, hub, tiny_folder):
    hub.files.clear()
    folder = tiny_folder("bert-mean-sharded")
    hub.files |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.files["model-00003-of-00002.safetensors"] = b"of nobody"
    load()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [name for name in hub.fetched() if name.startswith("model")] == [f"{WEIGHTS}.index.json", *shards]
    del hub.files[shards[1]]
    load(offline=True)
    with pytest.raises(StartError, match=f"it lacks {shards[1]}"):
        load(revision=OTHER)


def test_one_graph_and_no_other_where_nothing_is_built_from_safetensors(load, hub):
    for name in ("model.onnx", "model.onnx_data", "model_quantized.onnx", "model_fp16.onnx", "model_int8.onnx"):
        hub.files[f"onnx/{name}"] = name.encode()
    change_config(hub, model_type="deberta-v2")
    load()
    assert hub.fetched()[-2:] == ["onnx/model.onnx_data", "onnx/model.onnx"], "the graph when its data is there"
    assert WEIGHTS not in hub.fetched()
    hub.seen.clear()
    load(offline=True)
    with pytest.raises(StartError, match=r"missing onnx/model_fp16\.onnx"):
        load(offline=True, onnx_file="onnx/model_fp16.onnx")
    load(onnx_file="onnx/model_fp16.onnx")
    load(int8=True, revision=OTHER)
    assert [name for name in hub.fetched() if name.startswith("onnx")] == [
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
    ]


def test_a_type_that_is_not_built_costs_no_weights(load, hub):
    change_config(hub, model_type="deberta-v2")
    with pytest.raises(
        StartError, match=r"cannot be used: model type 'deberta-v2' is not supported; .*; nor is there a g"
    ):
        load()
    assert hub.fetched() == ["config.json", "modules.json"]
    with pytest.raises(StartError, match=r"it lacks onnx/other\.onnx"):
        load(onnx_file="onnx/other.onnx")
    with pytest.raises(StartError, match=r"outside the model's folder"):
        load(onnx_file="../other.onnx")


def test_dense_modules_by_name(load, hub, tiny_folder):
    folder = tiny_folder("bert-dense")
    hub.files |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    modules = json.loads(hub.files["modules.json"])
    dense = [one["path"] for one in modules if one["type"].endswith("Dense")]
    hub.files |= {f"2_Dense_8/{name}": hub.files[f"{dense[0]}/{name}"] + b" " for name in ("config.json", WEIGHTS)}
    load()
    assert {f"{place}/{WEIGHTS}" for place in dense} < set(hub.fetched())
    assert f"2_Dense_8/{WEIGHTS}" not in hub.fetched()
    load(dense_path="2_Dense_8")
    assert hub.fetched()[-1] == f"2_Dense_8/{WEIGHTS}"
    with pytest.raises(StartError, match=r"it lacks 2_Dense_9/config\.json, 2_Dense_9/model\.saf"):
        load(dense_path="2_Dense_9")


def test_a_cache_without_the_deciding_files_is_not_trusted(load, hub, cache, caplog):
    """As other programs leave it: weights, config and tokenizer, but not what says how to pool."""
    load()
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (snapshot_of(cache) / name).unlink()
    del hub.files["sentence_bert_config.json"]
    hub.seen.clear()
    load(offline=True)
    assert (
        "lacks modules.json, sentence_bert_config.json, if the model has them: there is no network" in caplog.text
    )
    hub.listing_status = 503
    load()
    assert f"if the model has them: Could not download acme/tiny; {hub.url} answered 503" in caplog.text
    hub.listing_status = 200
    hub.seen.clear()
    load()
    assert (snapshot_of(cache) / "1_Pooling/config.json").is_file()
    assert WEIGHTS not in hub.fetched()
    assert hub.seen[0].path == f"/api/models/acme/tiny/revision/{COMMIT}", "the branch may have moved on"
    hub.seen.clear()
    load()
    assert hub.seen == [], "noted as not existing: the hub is not asked again"


def test_a_graph_that_is_here_is_not_joined_by_weights_that_are_not(load, hub, cache):
    hub.files["onnx/model.onnx"] = b"graph"
    load(onnx_file="onnx/model.onnx")
    (snapshot_of(cache) / "modules.json").unlink()
    load()
    assert WEIGHTS not in hub.fetched()


def test_a_module_without_the_config_that_it_may_lack(load, hub, tiny_folder):
    hub.files.clear()
    folder = tiny_folder("bert-splade")
    hub.files |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del hub.files["1_SpladePooling/config.json"]
    load()
    hub.seen.clear()
    load()
    load(offline=True)
    assert hub.seen == []


def test_the_cache_of_the_client_library_is_used_and_fits(load, hub, cache):
    for name in (*SMALL, WEIGHTS):
        huggingface_hub.hf_hub_download("acme/tiny", name, cache_dir=cache)
    assert load(offline=True) == (snapshot_of(cache), COMMIT)
    hub.seen.clear()
    load(revision="v1.0")
    assert hub.fetched() == []
    assert huggingface_hub.hf_hub_download(
        "acme/tiny", WEIGHTS, cache_dir=cache, revision="v1.0", local_files_only=True
    )


def test_a_cache_that_cannot_be_written_to(refusal, cache):
    cache.write_text("a file")
    assert refusal() == f"cannot write to the hub cache {cache}: Not a directory"
