"""Models from the hub: what is fetched, how a download goes on, ends and fails. The hub is on loopback."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from tests.fixtures.hub_server import COMMIT
from tests.unit.engine.exporting import exported

from tei_manager.engines.log_reading import Fact, LogFact, read_line

ENGINE = Path(sys.executable).parent / "tei-engine"
WEIGHTS = "model.safetensors"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def environment(hub, tmp_path):
    """What an engine needs to find the hub, and nothing of the user's own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}


@pytest.fixture
def begin(launch, hub, cache, environment):
    """Start an engine that serves acme/tiny."""

    def start(*arguments, **more):
        env = environment | more
        return launch("--model-id", "acme/tiny", "--huggingface-hub-cache", str(cache), *arguments, env=env)

    return start


@pytest.fixture
def load(cache, environment):
    """Load acme/tiny and end; the ended process."""

    def run(*arguments, preexec=None, model="acme/tiny", cache=cache, **more):
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        return subprocess.run(
            [ENGINE, "--model-id", model, "--huggingface-hub-cache", str(cache), "--dry-run", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=own | environment | more,
            preexec_fn=preexec,
        )

    return run


def refused(ended):
    """The one line below `Could not download`."""
    assert ended.returncode == 1, ended.stdout
    head, reason = ended.stderr.split("\n\nCaused by:\n    0: ")
    assert head == "Error: Could not download acme/tiny"
    assert reason.count("\n") == 1, "one line"
    return reason.rstrip("\n")


def blobs(cache):
    return cache / "models--acme--tiny" / "blobs"


def left_over(cache):
    """Files of the cache that are no whole blob, no lock and no link."""
    return [str(p) for p in cache.rglob("*") if p.name.endswith((".incomplete", ".tmp"))]


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def held(hub, cache):
    """Wait until the weights have come as far as the hub lets them, and are on the disk; the file they are in."""
    assert hub.held.wait(30)
    partial = blobs(cache) / f"{hub.etag(WEIGHTS)}.incomplete"
    wait_until(lambda: partial.is_file() and partial.stat().st_size == hub.holds[WEIGHTS])
    return partial


def test_a_model_is_downloaded_once_and_only_what_is_needed(begin, hub, cache):
    engine = begin(HF_TOKEN="hf_swordfish")
    engine.wait_for("Ready")
    info = engine.get("/info").json
    assert (info["model_id"], info["model_sha"]) == ("acme/tiny", COMMIT)
    assert engine.stop() == 0

    needed = ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"]
    needed += ["config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json", WEIGHTS]
    assert hub.fetched() == needed
    for name in needed:
        blob = blobs(cache) / hub.etag(name)
        assert blob.read_bytes() == hub.files[name]
        assert (cache / "models--acme--tiny" / "snapshots" / COMMIT / name).resolve() == blob
    assert not left_over(cache)

    facts = [read_line(json.dumps(line)) for line in engine.lines]
    assert [fact.value for fact in facts if fact and fact.fact is Fact.DOWNLOADING] == needed
    assert LogFact(Fact.DOWNLOADED) in facts
    total = sum(len(hub.files[name]) for name in needed) / 1000
    assert any(line["message"].endswith(f" of {total:.1f} kB") for line in engine.lines)

    at_hub = {one.credential for one in hub.seen if not one.path.startswith("/content/")}
    elsewhere = {one.credential for one in hub.seen if one.path.startswith("/content/")}
    assert (at_hub, elsewhere) == ({"hf_swordfish"}, {None})
    assert "swordfish" not in json.dumps(engine.lines)


SPY = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["SPY_FILE"], "a") as file:
            file.write(f"{event} {arguments}\\n")

sys.addaudithook(note)
"""


def test_what_is_complete_needs_no_network(load, hub, tmp_path):
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    noted = tmp_path / "noted"
    path = os.pathsep.join([str(tmp_path / "spy"), os.environ.get("PYTHONPATH", "")])
    spying = {"PYTHONPATH": path, "SPY_FILE": str(noted)}
    assert load(**spying).returncode == 0
    assert "socket.connect" in noted.read_text(), "the spy is awake"
    noted.unlink()
    hub.seen.clear()
    for ended in (load(**spying), load("--offline", **spying), load(HF_HUB_OFFLINE="1", **spying)):
        assert ended.returncode == 0
        assert not noted.exists()
    assert hub.seen == []


def test_offline_and_incomplete_lists_what_is_missing(load, hub, cache):
    assert load().returncode == 0
    snapshot = cache / "models--acme--tiny" / "snapshots" / COMMIT
    (snapshot / WEIGHTS).unlink()
    (snapshot / "1_Pooling" / "config.json").unlink()
    ended = load("--offline")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: acme/tiny is not complete in {cache} and there is no network: "
        f"missing {WEIGHTS}, 1_Pooling/config.json\n"
    )
    hub.seen.clear()
    assert load().returncode == 0
    assert hub.fetched() == [], "their contents were there"


def test_a_killed_download_goes_on_where_it_was(begin, hub, cache):
    hub.holds[WEIGHTS] = 80_000
    engine = begin()
    partial = held(hub, cache)
    assert engine.stop(signal.SIGKILL) == -9
    assert partial.read_bytes() == hub.files[WEIGHTS][:80_000]
    hub.gate.set()
    engine = begin()
    engine.wait_for("Ready")
    assert hub.ranges(WEIGHTS) == [None, "bytes=80000-"]
    assert not left_over(cache)
    assert engine.stop() == 0


def test_sigterm_ends_a_download_at_once(begin, load, hub, cache):
    hub.holds[WEIGHTS] = 80_000
    engine = begin()
    held(hub, cache)
    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < 5
    assert engine.stderr() == ""
    ended = load("--offline")
    assert f"missing config.json, tokenizer.json, {WEIGHTS}" in ended.stderr, "no branch leads to half a model"
    hub.gate.set()
    assert load().returncode == 0
    assert hub.ranges(WEIGHTS) == [None, "bytes=80000-"]


def test_a_hub_that_is_not_there(load, a_free_port):
    url = f"http://127.0.0.1:{a_free_port()}"
    assert refused(load(HF_ENDPOINT=url)) == f"{url} could not be reached: [Errno 111] Connection refused"


def test_an_unknown_revision_is_one_line(load, hub):
    assert refused(load("--revision", "gone")) == "the hub has no revision gone of acme/tiny"


def test_a_hub_below_a_path(load, hub):
    hub.prefix = "/artifacts/hub"
    assert load("--revision", "refs/pr/3", HF_ENDPOINT=f"{hub.url}{hub.prefix}/").returncode == 0
    assert hub.fetched()[-1] == WEIGHTS


def test_a_hub_that_does_not_answer(load, hub):
    hub.is_closed = True
    began = time.monotonic()
    assert refused(load(HF_HUB_ETAG_TIMEOUT="1")) == f"{hub.url} could not be reached: timed out"
    assert time.monotonic() - began < 10


def test_an_empty_endpoint_is_the_usual_one(load, hub):
    """No network here, so it is known by its name only."""
    ended = load(HF_ENDPOINT="", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert refused(ended).startswith("https://huggingface.co could not be reached: ")


def test_a_model_that_only_has_a_ready_made_graph(begin, hub, tiny_folder, tmp_path):
    model = exported(tiny_folder("bert-mean"))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    del hub.files[WEIGHTS]
    for name in ("model.onnx", "model.onnx_data"):
        hub.files[f"onnx/{name}"] = (tmp_path / name).read_bytes()
    for more in ((), ("--offline",)):
        engine = begin(*more)
        engine.wait_for("Ready")
        assert engine.get("/info").json["engine"]["file"] == "onnx/model.onnx"
        assert engine.post("/embed", {"inputs": "hello"}).status == 200
        assert engine.stop() == 0
    assert hub.fetched()[-2:] == ["onnx/model.onnx_data", "onnx/model.onnx"]


def test_two_engines_share_one_download(begin, hub, cache):
    hub.holds[WEIGHTS] = 80_000
    engines = [begin(), begin()]
    held(hub, cache)
    wait_until(lambda: sum(one.path.startswith("/api/models/") for one in hub.seen) == 2)
    hub.gate.set()
    for engine in engines:
        engine.wait_for("Ready")
    assert hub.ranges(WEIGHTS) == [None]
    assert not left_over(cache)
    for engine in engines:
        assert engine.stop() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB, where this may be made, that can be made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )

    if shutil.which("mount") is None or mount("size=128k").returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder, lambda: mount("remount,size=4m")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("lists_sizes", [True, False], ids=["known before", "found out"])
def test_a_full_disk(load, hub, small_disk, lists_sizes):
    folder, grow = small_disk
    hub.lists_sizes = lists_sizes
    reason = refused(load(cache=folder))
    assert reason.startswith(f"no room in the hub cache {folder}: ")
    if lists_sizes:
        assert reason.endswith(" are free")
        assert WEIGHTS not in hub.fetched()
    else:
        assert reason.endswith("No space left on device")
        assert hub.ranges(WEIGHTS) == [None]
    assert not left_over(folder)
    assert not (folder / "models--acme--tiny" / "refs").exists(), "no branch leads to half a model"
    assert grow().returncode == 0
    assert load(cache=folder).returncode == 0


def test_a_file_that_may_not_grow_so_large(load, hub, cache):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert refused(load(preexec=limit)) == f"no room in the hub cache {cache}: File too large"
    assert not left_over(cache)
    assert load().returncode == 0
