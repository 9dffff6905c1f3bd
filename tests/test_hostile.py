"""Two hundred files made to do harm: each is refused in one sentence, and nothing of it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from pellucid import checkpoints

MOST_BYTES = 10**9

# In a process of its own, of which the peak is known. None is no answer: it must be an error.
ASK = """
import json, resource, sys
from pathlib import Path
from pellucid import checkpoints

found = {}
for name in json.load(open(sys.argv[1])):
    path = Path(sys.argv[2]) / name
    said = []
    for ask in (checkpoints.load, checkpoints.describe):
        try:
            ask(path)
            said.append(None)
        except checkpoints.CheckpointError as error:
            said.append(str(error))
        except BaseException as error:
            said.append(["not a CheckpointError", repr(error)])
    found[name] = said
try:  # On Linux getrusage counts the parent's memory too, which it had before it became this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
except OSError:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"found": found, "peak": kib * 1024}))
"""


class Files:
    """Writes files under a folder, and knows their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def add(self, name: str, content: bytes = b"") -> Path:
        path = self.folder / f"{len(self.names):03d} {name}"
        self.names.append(path.name)
        path.write_bytes(content)
        return path

    def add_folder(self, name: str) -> Path:
        path = self.folder / f"{len(self.names):03d} {name}"
        self.names.append(path.name)
        path.mkdir()
        return path


def headed(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, JSON or text, that says it has this length."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


# ---------------------------------------------------------------- safetensors

GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def truncated(files: Files, whole: bytes) -> None:
    for i in range(30):
        files.add(f"cut at {i} of 30", whole[: len(whole) * i // 30])
    for length in (1, 7, 8, 9, 50):
        files.add(f"cut at byte {length}", whole[:length])
    files.add("cut by one byte", whole[:-1])
    files.add("one byte more", whole + b"x")


def lengths(files: Files) -> None:
    for length in (0, 1, 2**24 + 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1):
        files.add(f"header of {length}", headed({"a": GOOD}, bytes(16), length))


def entries(files: Files) -> None:
    wrong: dict[str, list[Any]] = {
        "shape": [
            *([-2, -2], [2.0, 2], [2**62, 4], [2**32, 2**32], [2, "2"], [[2], 2], 4, None),
            *([True, 4], [0, 2**60], [2] * 3, [], "22", {}),
        ],
        "data_offsets": [
            *([16, 0], [-16, 0], [0, 2**63], [0, 2**64], [0, 8], [0], [], None, "ab"),
            *([0, 1e9], [0, "16"], [4, 20], [2**40, 2**40 + 16], [True, 16]),
        ],
        "dtype": ["F33", "F64", "F16", "", None, 3, ["F32"], "I32", "float32"],
    }
    for field, values in wrong.items():
        for value in values:
            files.add(
                f"{field} {str(value)[:20]}".replace("/", " "),
                headed({"a": GOOD | {field: value}}, bytes(16)),
            )
        files.add(
            f"no {field}", headed({"a": {k: v for k, v in GOOD.items() if k != field}}, bytes(16))
        )
    for value in ([], "a", 3, None, [GOOD]):
        files.add(f"entry {str(value)[:9]}", headed({"a": value}, bytes(16)))


def headers(files: Files) -> None:
    twice = '{"a": %s, "a": %s}' % ((json.dumps(GOOD),) * 2)
    files.add("a key twice", headed(twice, bytes(16)))
    overlap = {"a": GOOD, "b": GOOD}
    files.add("two in one place", headed(overlap, bytes(16)))
    files.add("a gap", headed({"a": GOOD, "b": GOOD | {"data_offsets": [32, 48]}}, bytes(48)))
    for name, text in {
        "deep": '{"a":' * 10**5,
        "deep list": "{" + '"a": ' + "[" * 10**5 + "]" * 10**5 + "}",
        "long number": '{"a": ' + "9" * 10**6 + "}",
        "long name": '{"' + "x" * 10**7 + '": 1}',
        "not JSON": "{" + "x" * 100,
        "no object": '["a"]',
        "not UTF-8": '{"\udcff": 1}',
        "empty": "{}",
        "no tensors": '{"__metadata__": {}}',
    }.items():
        files.add(name, headed_bytes(text))
    many = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)}
    files.add("many keys", headed(many))
    for metadata in (3, [], "a", {"pellucid": 3}, {"pellucid": ""}, {"pellucid": "[]"}):
        files.add(
            f"metadata {str(metadata)[:15]}",
            headed({"__metadata__": metadata, "a": GOOD}, bytes(16)),
        )


def headed_bytes(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


# ---------------------------------------------------------------- our own metadata


def absurd(files: Files, model_file: Path) -> None:
    """A good file, but for one number that it says of itself."""
    with safe_open(model_file, framework="pt") as file:
        facts = json.loads(file.metadata()["pellucid"])
    weights = {"backbone.conv_in.bias": torch.zeros(8)}
    unet = {
        "layers_per_block": [10**9, -1, 0, "1", None, 1.5],
        "mid_transformer_layers": [10**9, -1],
        "transformer_layers": [[0, 10**9], [], [0]],
        "block_out_channels": [[8] * 10**5, [2**62, 2**62], [], [10**12, 16]],
        "norm_groups": [0, -1],
        "heads": [[0, 0], [10**9, 3]],
        "cross_attention_dim": [2**63, -16],
        "in_channels": [10**18],
        "warp": [1],
    }
    for name, values in unet.items():
        for value in values:
            changed = json.loads(json.dumps(facts))
            changed["parts"]["backbone"]["config"][name] = value
            metadata = {"pellucid": json.dumps(changed)}
            files.add(f"own {name} {str(value)[:12]}", save(weights, metadata))
    for part, name, value in (
        ("text", "layers", 10**9),
        ("text", "vocab_size", 2**62),
        ("vae", "layers_per_block", 10**9),
        ("vae", "block_out_channels", [8] * 10**5),
        ("vision", "layers", 10**9),
    ):
        changed = json.loads(json.dumps(facts))
        changed["parts"][part]["config"][name] = value
        files.add(f"own {part} {name}", save(weights, {"pellucid": json.dumps(changed)}))
    for name, value in {
        "version": 2**70,
        "parts": [],
        "schedule": {"T": 10**12},
        "tokenizer": {"bpe": "x" * 10**6},
        "prediction": 3,
        "defaults": 3,
    }.items():
        files.add(f"own {name}", save(weights, {"pellucid": json.dumps(facts | {name: value})}))


# ---------------------------------------------------------------- pickles


class Runs:
    """A pickle of it would do this when it is opened by the usual means."""

    def __init__(self, *does: Any) -> None:
        self.does = does

    def __reduce__(self) -> Any:
        return self.does[0], self.does[1:]


def payloads(files: Files, touched: Path) -> None:
    """Every one would make the file `touched`."""
    command = f"touch '{touched}'"
    touch = f"__import__('pathlib').Path({str(touched)!r}).touch()"
    harmful = {
        "os.system": Runs(os.system, command),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "touch": Runs(Path.touch, touched),
        "Popen": Runs(subprocess.Popen, command, -1, None, None, None, None, None, True, True),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "pickle": Runs(pickle.loads, pickle.dumps(Runs(os.system, command))),
        "torch.load": Runs(torch.load, str(touched)),
    }
    for name, thing in harmful.items():
        for zipped in (True, False):
            content = io.BytesIO()
            whole = {"state_dict": {"a": torch.zeros(2)}, "more": thing}
            torch.save(whole, content, _use_new_zipfile_serialization=zipped)
            files.add(f"runs {name} {'zip' if zipped else 'bare'}.ckpt", content.getvalue())
        files.add(f"runs {name} plain.bin", pickle.dumps({"a": thing}, protocol=2))
    files.add("runs as a key.pt", torch_zip(pickle.dumps({Runs(os.system, command): 1}, 2)))
    files.add("old GLOBAL.pt", torch_zip(f"cposix\nsystem\n(V{command}\ntR.".encode()))
    files.add("INST.pt", torch_zip(f"(V{command}\niposix\nsystem\n.".encode()))


def torch_zip(data: bytes, **more: bytes) -> bytes:
    """A zip file as torch.save writes it, with this as its pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, value in more.items():
            archive.writestr(f"archive/data/{name}", value)
    return content.getvalue()


def pickles(files: Files) -> None:
    for name, code in {
        "stops at once": b".",
        "nothing on the stack": b"\x80\x02R.",
        "a long integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "bytes of 2^63": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",
        "text of 2^40": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        "an unknown memo": b"\x80\x02j\xff\xff\xff\x7f.",
        "a memo far off": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "doubled lists": b"\x80\x02]" + b"q\x000h\x00(h\x00h\x00l" * 60 + b".",
        "deep tuples": b"\x80\x02N" + b"\x85" * 10**5 + b".",
        "no end": b"\x80\x02}q\x00",
        "protocol 9": b"\x80\x09}.",
    }.items():
        files.add(f"pickle {name}.pt", torch_zip(code))
    for name, size, stride in (
        ("beyond its storage", (10**6,), (1,)),
        ("of 2^62", (2**31, 2**31), (1, 1)),
        ("negative", (-1,), (1,)),
        ("of a negative stride", (2,), (-1,)),
        ("expanded", (10**10,), (0,)),
    ):
        data = persisted({"a": (size, stride)})
        files.add(f"tensor {name}.pt", torch_zip(data, **{"0": bytes(16)}))
    tensors = io.BytesIO()
    torch.save({"a": torch.zeros(2**10), "b": torch.zeros(3)}, tensors)
    for i in range(12):
        files.add(f"pickle cut at {i} of 12.ckpt", tensors.getvalue()[: tensors.tell() * i // 12])
    for thing in (torch.zeros(2), [1], {}, {"a": 1}, {1: torch.zeros(2)}, {"a": "x" * 10**6}):
        content = io.BytesIO()
        torch.save(thing, content)
        files.add(f"pickle of {type(thing).__name__}.ckpt", content.getvalue())


class Stored:
    """Stands for a storage until `persisted` puts torch's persistent id in its place."""

    def __init__(self, key: str, count: int) -> None:
        self.id = ("storage", torch.FloatStorage, key, "cpu", count)


def persisted(shapes: dict[str, Any]) -> bytes:
    """The pickle of a dictionary of tensors that say these sizes and strides."""
    content = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return thing.id if isinstance(thing, Stored) else None

    tensors = {
        key: Runs(torch._utils._rebuild_tensor_v2, Stored("0", 4), 0, *shape, False, {})
        for key, shape in shapes.items()
    }
    Pickler(content, 2).dump(tensors)
    return content.getvalue()


def zips(files: Files) -> None:
    def archive(names: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", how) as out:
            for name, data in names.items():
                out.writestr(name, data)
        return content.getvalue()

    bomb = archive({"a/data.pkl": bytes(5 * 10**7)}, zipfile.ZIP_DEFLATED)
    files.add("zip bomb.ckpt", bomb)
    files.add(
        "zip bomb of data.ckpt",
        archive({"a/data.pkl": b"}.", "a/data/0": bytes(10**8)}, zipfile.ZIP_BZIP2),
    )
    files.add("zip of a zip.ckpt", archive({"a/data.pkl": bomb}))
    files.add("zip of letters.ckpt", archive({"readme.txt": b"hello"}))
    files.add("zip upwards.ckpt", archive({"../../data.pkl": b"}."}))
    files.add("zip of many.ckpt", archive({f"a/{i}": b"" for i in range(10_000)}))
    files.add("large pickle.ckpt", archive({"a/data.pkl": bytes(2**24)}))
    plain = archive({"a/data.pkl": pickle.dumps({"a": 1}, 2)})
    for name, at, size in (("sizes", 22, 8), ("names", 26, 2), ("first", 0, 4), ("flags", 6, 2)):
        files.add(f"zip with wrong {name}.ckpt", plain[:at] + b"\xff" * size + plain[at + size :])
    end = plain.rindex(b"PK\x05\x06")
    files.add(
        "zip with a directory far off.ckpt", plain[: end + 12] + b"\xfe" * 8 + plain[end + 20 :]
    )
    files.add("zip of many entries.ckpt", plain[: end + 8] + b"\xff" * 4 + plain[end + 12 :])


# ---------------------------------------------------------------- other models, indices


def others(files: Files) -> None:
    for name in (
        "model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight",
        "model.diffusion_model.double_blocks.0.img_attn.proj.weight",
        "double_blocks.0.img_attn.proj.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.encoder.conv_in.weight",
        "cond_stage_model.model.token_embedding.weight",
        "conditioner.embedders.1.model.token_embedding.weight",
        "first_stage_model.encoder.down.0.block.0.norm1.weight",
        "state_dict.model.diffusion_model.out.2.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "",
        "a" * 10**5,
        "../../etc/passwd",
    ):
        files.add(f"only {name[:40]}".replace("/", " "), save({name: torch.zeros(3)}))


def indices(files: Files) -> None:
    (files.folder / "shard.safetensors").write_bytes(save({"a": torch.zeros(3)}))
    places: tuple[Any, ...] = (
        *(
            {"a": name}
            for name in ("../../etc/passwd", "/etc/passwd", "..", ".", "", "a\0b", "none")
        ),
        *({"a": name} for name in ("shard.safetensors", "..\\shard.safetensors", 3, None, [])),
        *([], 3, None, {"a": {"a": "a"}}, {str(i): "shard.safetensors" for i in range(1000)}),
    )
    for place in places:
        files.add(
            f"index {str(place)[:24]}".replace("/", " "), json.dumps({"weight_map": place}).encode()
        )
    itself = files.add("index of itself", b"")
    itself.write_text(json.dumps({"weight_map": {"a": itself.name}}))
    one, two = files.add("index of another"), files.add("index of the first")
    one.write_text(json.dumps({"weight_map": {"a": two.name}}))
    two.write_text(json.dumps({"weight_map": {"a": one.name}}))
    files.add("index in depth", b'{"weight_map": ' * 10**5)
    files.add("index cut", b'{"weight_map": {"a": "sha')
    files.add("large index", b'{"weight_map": {}}' + b" " * 2**25)


def odd_places(files: Files) -> None:
    files.add_folder("empty folder")
    for name in ("link to itself", "link to nothing"):
        path = files.folder / f"{len(files.names):03d} {name}"
        files.names.append(path.name)
        path.symlink_to(path if "itself" in name else "none at all")
    folder = files.add_folder("folder of links")
    (folder / "model_index.json").symlink_to("model_index.json")
    folder = files.add_folder("folder in itself")
    (folder / "unet").symlink_to(folder)
    pipe = files.folder / f"{len(files.names):03d} pipe"
    files.names.append(pipe.name)
    os.mkfifo(pipe)


# ---------------------------------------------------------------- folders

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"cross_attention_dim": 64, "block_out_channels": [32] * 4},
    "vae": {"block_out_channels": [32]} | BLOCKS,
    "text_encoder": {"hidden_size": 64},
}


def folders(files: Files) -> None:
    wrong: tuple[tuple[str, str, Any], ...] = (
        ("unet", "layers_per_block", 10**9),
        ("unet", "layers_per_block", 10**6),
        ("unet", "transformer_layers_per_block", 10**9),
        ("unet", "transformer_layers_per_block", 10**6),
        ("unet", "block_out_channels", [32] * 10**5),
        ("unet", "block_out_channels", [2**60] * 4),
        ("unet", "attention_head_dim", [0] * 4),
        ("unet", "norm_num_groups", -3),
        ("unet", "in_channels", 1e300),
        ("unet", "in_channels", "4"),
        ("vae", "layers_per_block", 10**9),
        ("vae", "latent_channels", 2**63),
        ("vae", "scaling_factor", "1e999"),
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "num_hidden_layers", 10**6),
        ("text_encoder", "vocab_size", 10**15),
        ("text_encoder", "max_position_embeddings", -77),
        ("text_encoder", "hidden_act", {"a": []}),
        ("", "unet", ["os", "system"]),
        ("", "unet", [["a"], {"b": 1}]),
        ("", "text_encoder", ["../..", "T5EncoderModel"]),
        ("", "_class_name", 3),
    )
    for part, key, value in wrong:
        folder = files.add_folder(f"folder {part} {key} {str(value)[:9]}".replace("/", " "))
        content = {"": INDEX, **CONFIGS}
        for name, config in content.items():
            config = config | {key: value} if name == part else config
            (folder / name).mkdir(exist_ok=True)
            file = folder / name / ("config.json" if name else "model_index.json")
            file.write_text(json.dumps(config))
    for name, text in {"deep": "[" * 10**6, "large": " " * 10**7, "cut": '{"a'}.items():
        folder = files.add_folder(f"folder with a {name} index")
        (folder / "model_index.json").write_text(text)
    folder = files.add_folder("folder with a pipe")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    for part in CONFIGS:
        (folder / part).mkdir()
        os.mkfifo(folder / part / "config.json")


# ---------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def asked(
    model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("hostile")
    files = Files(folder / "files")
    files.folder.mkdir()
    truncated(files, model_file.read_bytes())
    lengths(files)
    entries(files)
    headers(files)
    absurd(files, model_file)
    payloads(files, folder / "touched")
    pickles(files)
    zips(files)
    others(files)
    indices(files)
    odd_places(files)
    folders(files)
    names = folder / "names.json"
    names.write_text(json.dumps(files.names))
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    command = [sys.executable, "-c", ASK, str(names), str(files.folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    yield folder, json.loads(done.stdout)


def test_each_is_refused_in_a_sentence(asked: tuple[Path, dict[str, Any]]) -> None:
    _, told = asked
    assert len(told["found"]) >= 200
    wrong = {
        name: said
        for name, (said, described) in told["found"].items()
        if not isinstance(said, str) or isinstance(described, list)
    }
    assert wrong == {}
    for name, (said, _) in told["found"].items():
        assert name in said and "\n" not in said and len(said) < 1000


def test_nothing_is_run(asked: tuple[Path, dict[str, Any]]) -> None:
    folder, told = asked
    assert not (folder / "touched").exists()
    # The payloads are real: the usual way of opening runs them.
    name = next(name for name in told["found"] if name.endswith("runs os.system zip.ckpt"))
    torch.load(folder / "files" / name, weights_only=False)
    assert (folder / "touched").exists()


def test_memory(asked: tuple[Path, dict[str, Any]]) -> None:
    assert asked[1]["peak"] < MOST_BYTES


def test_pipes_are_not_waited_for(asked: tuple[Path, dict[str, Any]]) -> None:
    names = [name for name in asked[1]["found"] if name.endswith("pipe")]
    assert len(names) == 2
