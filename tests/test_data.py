import contextlib
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import threading
import time
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from attrobust import data, paths
from attrobust.data import files, sources
from made_up import idx

SIZE = (1, 4, 6)
NAMES = [f.name for f in sources.SOURCES["mnist"].files]


def arrays(n_train=40, n_test=20):
    """Pixels that tell which image they belong to; classes 0 to 9 with unequal counts."""
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (n_train + n_test, *SIZE[1:])), np.arange(n_train + n_test) ** 2 % 10
    x[:, 0, 0] = np.arange(n_train + n_test)
    x, y = x.astype(np.uint8), y.astype(np.uint8)
    return x[:n_train], y[:n_train], x[n_train:], y[n_train:]


CONTENT = {name: gzip.compress(idx(a), mtime=0) for name, a in zip(NAMES, arrays(), strict=True)}
#: Another data set, published under the same names: every pixel and label turned round.
CLOTHES = {name: gzip.compress(idx(a.max() - a), mtime=0) for name, a in zip(NAMES, arrays(), strict=True)}


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def unpacked(content):
    """The same files as unpacking tools leave them."""
    return {name.removesuffix(".gz"): gzip.decompress(raw) for name, raw in content.items()}


def repacked(content):
    """The same content, packed by another tool."""
    return {name: gzip.compress(gzip.decompress(raw), compresslevel=1, mtime=1) for name, raw in content.items()}


def pinned(content, urls=()):
    return tuple(
        sources.File(name, sha256(raw), sha256(files.unpack(raw)), len(raw), tuple(u + name for u in urls))
        for name, raw in content.items()
    )


def source(content=CONTENT, urls=(), **changes):
    fields = {"files": pinned(content, urls), "folders": ("mnist", "MNIST/raw"), "classes": tuple("0123456789")}
    fields |= {"size": SIZE, "reader": "idx"}
    return sources.Source(**(fields | changes))


@pytest.fixture(autouse=True)
def nothing_but_temporary_folders(tmp_path, monkeypatch):
    """An empty machine with a tiny data set in the pinned table."""
    monkeypatch.setattr(paths, "data", tmp_path / "checkout")
    monkeypatch.delenv("ATTROBUST_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(sources.SOURCES, "mnist", source())
    monkeypatch.setitem(sources.SOURCES, "fashion_mnist", source(CLOTHES, folders=("fashion_mnist",)))
    monkeypatch.setitem(sources.SOURCES, "two_digits", source(reader="two_digits", made="two digits"))


def put(folder, content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in content.items():
        (folder / name).write_bytes(raw)
    return folder


@pytest.fixture
def server(tmp_path):
    """Files of a folder on 127.0.0.1; the address and the folder."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/", served
    http.shutdown()
    thread.join()
    http.server_close()


# ------------------------------------------------------------------ content


def test_loaded_pixels_are_the_files_bytes_over_255(tmp_path):
    put(tmp_path / "checkout" / "mnist")
    loaded = data.load("mnist")
    train_x, train_y, test_x, test_y = arrays()
    assert torch.equal((loaded.train.x[:, 0] * 255).round().byte(), torch.from_numpy(train_x))
    assert torch.equal((loaded.test.x[:, 0] * 255).round().byte(), torch.from_numpy(test_x))
    assert loaded.train.y.tolist() == train_y.tolist()
    assert loaded.test.y.tolist() == test_y.tolist()
    assert loaded.train.x.dtype == torch.float32
    assert loaded.train.y.dtype == torch.int64
    assert 0 <= loaded.train.x.min() <= loaded.train.x.max() <= 1
    assert loaded.verified
    assert len(loaded.classes) == 10


def test_digits_are_embedded_pinned_and_split_without_overlap():
    digits = data.load("digits")
    assert digits.train.x.shape == (1000, 1, 8, 8)
    assert digits.test.x.shape == (797, 1, 8, 8)
    assert digits.verified
    assert digits.train.x.max() == 1
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = bunch.images.astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == sources.DIGITS_PIXELS
    both = torch.cat([digits.train.x, digits.test.x])[:, 0].mul(16).round().byte().numpy()
    labels = torch.cat([digits.train.y, digits.test.y]).numpy()
    ours = sorted((p.tobytes(), int(c)) for p, c in zip(both, labels, strict=True))
    assert ours == sorted((p.tobytes(), int(c)) for p, c in zip(pixels, bunch.target, strict=True))


def test_digits_with_other_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(files, "DIGITS_PIXELS", "0" * 64)
    with pytest.raises(data.DataError, match="digits are not the pinned ones: reinstall scikit-learn"):
        data.load("digits")


@pytest.mark.parametrize("n", [10, 37, 100, 500])
def test_subsets_are_balanced_seeded_and_without_repeats(n):
    first, again, other = (data.load("digits", n_train=n, n_test=n, seed=s) for s in (0, 0, 1))
    for part in ("train", "test"):
        x, y = getattr(first, part)
        counts = y.bincount(minlength=10)
        assert len(x) == len(y) == n
        assert counts.max() - counts.min() <= 1
        assert len({im.numpy().tobytes() for im in x}) == n
        assert torch.equal(x, getattr(again, part).x)
        assert not torch.equal(x, getattr(other, part).x)


@pytest.mark.parametrize(("n", "seed"), [(37, 0), (120, 3)])
def test_a_subset_is_dealt_class_by_class_from_a_seeded_shuffle_and_shuffled_again(n, seed):
    whole = data.load("digits").train
    draw = np.random.default_rng(seed)
    deck, dealt, turn = draw.permutation(len(whole.y)).tolist(), [], 0
    while len(dealt) < n:
        taken = dict.fromkeys(range(10), 0)
        for i in deck:
            if taken[int(whole.y[i])] == turn:
                dealt.append(i)
            taken[int(whole.y[i])] += 1
        turn += 1
    chosen = draw.permutation(np.array(dealt[:n]))
    subset = data.load("digits", n_train=n, seed=seed).train
    assert torch.equal(subset.x, whole.x[chosen])
    assert torch.equal(subset.y, whole.y[chosen])


def test_subsets_hold_images_with_their_own_labels():
    whole = data.load("digits").train
    label = {im.numpy().tobytes(): int(c) for im, c in zip(*whole, strict=True)}
    some = data.load("digits", n_train=50).train
    assert [label[im.numpy().tobytes()] for im in some.x] == some.y.tolist()


def test_a_smaller_subset_is_part_of_a_larger_one():
    small, large = ({im.numpy().tobytes() for im in data.load("digits", n_train=n).train.x} for n in (30, 200))
    assert small < large


def test_classes_that_run_out_leave_the_rest_as_equal_as_can_be(tmp_path):
    put(tmp_path / "checkout" / "mnist")
    whole = data.load("mnist").train.y.bincount(minlength=10)
    part = data.load("mnist", n_train=20).train.y.bincount(minlength=10)
    present = whole > 0
    level = part[present].max()
    assert (part[present] >= torch.minimum(whole[present], level - 1)).all()
    assert not part[~present].any()


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_side_pools_pixels_to_means_over_blocks(side):
    plain, pooled = data.load("digits", n_train=20).train, data.load("digits", n_train=20, side=side).train
    block = 8 // side
    for i in range(side):
        for j in range(side):
            mean = plain.x[:, 0, i * block : (i + 1) * block, j * block : (j + 1) * block].mean((1, 2))
            assert torch.allclose(pooled.x[:, 0, i, j], mean, atol=1e-6)
    assert torch.equal(plain.y, pooled.y)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "minst"}, "name is 'minst'; it must be one of digits, .*; did you mean 'mnist'"),
        ({"n_train": 0}, "n_train is 0; it must be a whole number from 1 to 1000"),
        ({"n_train": 1001}, "n_train is 1001; it must be a whole number from 1 to 1000"),
        ({"n_test": 798}, "n_test is 798; it must be a whole number from 1 to 797"),
        ({"side": 3}, "side is 3; it must divide the images' side, 8"),
        ({"side": 16}, "side is 16; it must be a whole number from 1 to 8"),
        ({"side": 0}, "side is 0; it must be a whole number from 1 to 8"),
    ],
)
def test_sizes_a_data_set_does_not_have_are_refused(change, sentence):
    asked = {"name": "digits"} | change
    with pytest.raises(ValueError, match=sentence):
        data.load(asked.pop("name"), **asked)


def test_what_is_said_about_a_data_set_is_what_loading_gives(tmp_path):
    put(tmp_path / "checkout" / "mnist")
    for name in ("digits", "mnist", "two_digits"):
        assert data.image_shape(name) == tuple(data.load(name).train.x.shape[1:])
    assert data.download_size("digits") == 0
    assert data.download_size("mnist") == sum(map(len, CONTENT.values()))
    for function in (data.image_shape, data.download_size, data.available, data.fetch):
        with pytest.raises(ValueError, match="name is 'imagenet'; it must be one of digits"):
            function("imagenet")


def test_fingerprints_tell_data_sets_apart():
    prints = [data.fingerprint(name) for name in data.NAMES]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 12 for p in prints)


@pytest.mark.parametrize("part", range(4))
def test_other_content_in_any_file_is_another_fingerprint_and_another_packing_is_not(monkeypatch, part):
    before = data.fingerprint("mnist")
    monkeypatch.setitem(sources.SOURCES, "mnist", source(repacked(CONTENT)))
    assert data.fingerprint("mnist") == before
    monkeypatch.setitem(sources.SOURCES, "mnist", source(CONTENT | {NAMES[part]: CLOTHES[NAMES[part]]}))
    assert data.fingerprint("mnist") != before


# ------------------------------------------------------------------ places


def test_places_are_searched_in_the_stated_order(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTROBUST_DATA", str(tmp_path / "environment"))
    order = [tmp_path / name for name in ("asked", "environment", "checkout", "home")]
    assert data.places(tmp_path / "asked") == order
    for i, place in enumerate(reversed(order)):
        assert data.available("mnist", data_dir=tmp_path / "asked") == (i > 0)
        put(place / "mnist")
        found = files.locate("mnist", sources.SOURCES["mnist"], data_dir=tmp_path / "asked")
        assert all(path.is_relative_to(place) for path in found.values())


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "."])
def test_folders_that_other_tools_use_are_found(tmp_path, folder):
    put(tmp_path / "elsewhere" / folder)
    assert data.available("mnist", data_dir=tmp_path / "elsewhere")
    assert not data.available("mnist")
    assert data.load("mnist", data_dir=tmp_path / "elsewhere").verified


def is_mnist(loaded):
    return torch.equal((loaded.train.x[:, 0] * 255).round().byte(), torch.from_numpy(arrays()[0]))


@pytest.mark.parametrize("change", [dict, unpacked, repacked])
def test_files_are_known_by_what_they_unpack_to(tmp_path, change):
    put(tmp_path / "checkout/mnist", change(CONTENT))
    loaded = data.load("mnist")
    assert is_mnist(loaded)
    assert loaded.verified
    assert not data.available("fashion_mnist")


def named(content, pattern):
    return {pattern.format(name): raw for name, raw in content.items()}


@pytest.mark.parametrize("first", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("folder", [".", "mnist", "fashion_mnist"])
@pytest.mark.parametrize(
    "change", [unpacked, lambda content: named(content, "other-{}"), lambda content: named(content, "{}.1")]
)
def test_two_data_sets_of_the_same_names_share_a_folder(tmp_path, first, folder, change):
    contents = {"mnist": CONTENT, "fashion_mnist": CLOTHES}
    second = ({*contents} - {first}).pop()
    put(tmp_path / "checkout" / folder, contents[first])
    put(tmp_path / "checkout" / folder, change(contents[second]))
    if folder in (".", first):
        assert data.load(first).verified
        assert is_mnist(data.load(first)) == (first == "mnist")
    if folder in (".", second):
        assert data.load(second).verified
        assert is_mnist(data.load(second)) == (second == "mnist")


@pytest.mark.parametrize(("there", "asked"), [("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")])
def test_files_of_another_data_set_are_not_there_and_are_named(tmp_path, there, asked):
    folder = put(tmp_path / "checkout", {"mnist": CONTENT, "fashion_mnist": CLOTHES}[there])
    assert data.available(there)
    assert data.load(there).verified
    assert not data.available(asked)
    with pytest.raises(data.DataError) as caught:
        data.load(asked)
    assert str(caught.value) == (
        f"{folder / NAMES[0]} cannot be used because it holds {NAMES[0]} of {there!r}: move it elsewhere and"
        f" run `make data DATASETS={asked}`."
    )
    put(tmp_path / "home" / asked, {"mnist": CONTENT, "fashion_mnist": CLOTHES}[asked])
    assert is_mnist(data.load(asked)) == (asked == "mnist")


@pytest.mark.parametrize("part", range(4))
def test_one_foreign_file_among_the_right_ones_is_passed_over(tmp_path, part):
    put(tmp_path / "checkout" / "mnist", CONTENT | {NAMES[part]: CLOTHES[NAMES[part]]})
    assert not data.available("mnist")
    with pytest.raises(
        data.DataError, match=f"{NAMES[part]} cannot be used because it holds {NAMES[part]} of 'fashion_mnist'"
    ):
        data.load("mnist")
    put(tmp_path / "checkout", {NAMES[part].removesuffix(".gz"): unpacked(CONTENT)[NAMES[part].removesuffix(".gz")]})
    assert is_mnist(data.load("mnist"))


def test_a_file_under_the_name_of_its_sister_is_told(tmp_path):
    put(tmp_path / "checkout" / "mnist", CONTENT | {NAMES[0]: CONTENT[NAMES[1]]})
    with pytest.raises(data.DataError, match=f"{NAMES[0]} cannot be used because it holds {NAMES[1]} of 'mnist'"):
        data.load("mnist")


def test_an_unpacked_file_with_other_content_is_refused_and_never_verified(tmp_path):
    plain = unpacked(CONTENT)
    name = NAMES[0].removesuffix(".gz")
    folder = put(tmp_path / "checkout" / "mnist", plain | {name: plain[name][:-1] + b"\0"})
    digest = sha256(plain[name])[:12]
    with pytest.raises(
        data.DataError, match=rf"{folder / name} cannot be used because its SHA-256 is .*, not {digest}"
    ):
        data.load("mnist")
    assert not data.load("mnist", verify=False).verified


# ------------------------------------------------------------------ damage


def test_a_missing_data_set_tells_files_places_and_remedy(tmp_path):
    put(tmp_path / "checkout/mnist", dict(list(CONTENT.items())[:3]))
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", data_dir=tmp_path / "asked")
    said = str(caught.value)
    assert NAMES[3] in said
    assert NAMES[0] not in said
    for place in ("asked", "checkout", "home"):
        assert str(tmp_path / place) in said
    assert "run `make data DATASETS=mnist`" in said
    assert "ATTROBUST_DATA" in said


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGES = {
    "truncated": (
        lambda raw: raw[:-7],
        r"it is truncated \(\d+ of \d+ bytes\): delete it and run `make data DATASETS=mnist`",
    ),
    "changed": (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), r"its SHA-256 is [0-9a-f]{12}\.\.\., not [0-9a-f]{12}"),
    "longer": (lambda raw: raw + b"x", r"its SHA-256 is"),
    "pointer": (lambda _: LFS, "it is a git-LFS pointer, not the data: run `git lfs pull`"),
    "page": (lambda _: b"\n<!DOCTYPE html><html><body>404</body>", "it is an HTML page, probably a download's error"),
    "bare page": (lambda _: b"<HTML><head>", "it is an HTML page"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [NAMES[0], NAMES[3]])
def test_a_damaged_file_is_named_with_its_cause(tmp_path, damage, name):
    change, sentence = DAMAGES[damage]
    folder = put(tmp_path / "checkout/mnist", CONTENT | {name: change(CONTENT[name])})
    with pytest.raises(data.DataError, match=f"{folder / name} cannot be used because {sentence}"):
        data.load("mnist")


def test_other_content_is_accepted_on_request_and_marked(tmp_path):
    other = [a[::-1] for a in arrays()]
    put(tmp_path / "checkout/mnist", {n: gzip.compress(idx(a), mtime=0) for n, a in zip(NAMES, other, strict=True)})
    with pytest.raises(data.DataError, match="its SHA-256 is"):
        data.load("mnist")
    loaded = data.load("mnist", verify=False)
    assert not loaded.verified
    assert torch.equal((loaded.train.x[:, 0] * 255).round().byte(), torch.from_numpy(other[0].copy()))


UNREADABLE = {
    "cut gzip": (CONTENT[NAMES[0]][:-20], "is damaged"),
    "broken gzip": (CONTENT[NAMES[0]][:40] + b"\xff" * 50 + CONTENT[NAMES[0]][90:], "is damaged"),
    "no gzip": (b"no gzip", "is not an idx file of bytes"),
    "no idx": (gzip.compress(b"\1\2\3\4 something else"), "is not an idx file of bytes"),
    "floats": (gzip.compress(struct.pack(">BBBBI", 0, 0, 13, 1, 3) + b"123"), "is not an idx file of bytes"),
    "empty": (gzip.compress(b""), "is not an idx file of bytes"),
    "no header": (gzip.compress(b"\0\0\x08\x03\0\0\0"), "is not an idx file of bytes"),
    "short": (gzip.compress(idx(arrays()[0])[:-5]), r"holds 955 bytes where its header promises 960"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_named_even_when_digests_are_not_asked_for(tmp_path, kind):
    raw, sentence = UNREADABLE[kind]
    folder = put(tmp_path / "checkout/mnist", CONTENT | {NAMES[0]: raw})
    with pytest.raises(data.DataError, match=f"{folder / NAMES[0]} {sentence}"):
        data.load("mnist", verify=False)


@pytest.mark.parametrize("change", [{"size": (1, 6, 4)}, {"classes": tuple("01234567")}])
def test_images_or_labels_of_another_data_set_are_refused(tmp_path, monkeypatch, change):
    put(tmp_path / "checkout/mnist")
    monkeypatch.setitem(sources.SOURCES, "mnist", source(**change))
    with pytest.raises(data.DataError, match=r"the files of 'mnist' hold images .* do not belong to it"):
        data.load("mnist")


# ------------------------------------------------------------------ download


def test_download_fetches_what_is_missing_and_only_that(tmp_path, monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    put(served)
    put(tmp_path / "checkout/mnist", {NAMES[0]: CONTENT[NAMES[0]]})
    (served / NAMES[0]).unlink()
    data.fetch("mnist")
    assert sorted(p.name for p in (tmp_path / "checkout/mnist").iterdir()) == sorted(NAMES)
    assert data.load("mnist").verified


def test_download_goes_to_the_folder_that_is_asked_for(tmp_path, monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    put(served)
    assert files.download("mnist", sources.SOURCES["mnist"], data_dir=tmp_path / "asked") == tmp_path / "asked/mnist"
    assert data.available("mnist", data_dir=tmp_path / "asked")
    assert not data.available("mnist")


def test_the_second_address_is_tried_where_the_first_fails(tmp_path, monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url + "nowhere/", url)))
    put(served)
    data.fetch("mnist")
    assert data.load("mnist").verified


def test_a_download_overwrites_no_file_of_another_content(tmp_path, monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    put(served)
    folder = put(tmp_path / "checkout/mnist", CLOTHES)
    with pytest.raises(
        data.DataError, match=f"{folder / NAMES[0]} cannot be used because it holds {NAMES[0]} of 'fashion"
    ):
        data.fetch("mnist")
    assert (folder / NAMES[0]).read_bytes() == CLOTHES[NAMES[0]]
    for name in NAMES:
        (folder / name).rename(tmp_path / "checkout" / name)
    data.fetch("mnist")
    assert is_mnist(data.load("mnist"))


def test_a_download_with_another_digest_is_refused_and_nothing_half_written_stays(tmp_path, monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    put(served, CONTENT | {NAMES[1]: b"<html>an error page</html>"})
    with pytest.raises(data.DataError, match=rf"{NAMES[1]} could not be fetched from {url}.*differs from expected"):
        data.fetch("mnist")
    assert [p.name for p in (tmp_path / "checkout/mnist").iterdir()] == [NAMES[0]]
    assert not data.available("mnist")


@pytest.mark.parametrize("broken", ["http://127.0.0.1:9/", "http://attrobust.invalid/"])
def test_without_network_the_address_and_the_way_round_are_told(tmp_path, monkeypatch, broken):
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(broken,)))
    with pytest.raises(data.DataError) as caught:
        data.fetch("mnist")
    said = str(caught.value)
    assert broken + NAMES[0] in said
    assert f"check the network, or copy the file into {tmp_path / 'checkout/mnist'} by hand" in said
    assert list((tmp_path / "checkout/mnist").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda url: url.replace("http://127.0.0.1", "http://127.0.0.2"), "it is not an https address"),
        (lambda url: url.replace("http://", "ftp://"), "it is not an https address"),
        (lambda url: "file:///", "it is not an https address"),
    ],
)
def test_data_come_by_https_or_from_this_machine(tmp_path, monkeypatch, server, change, sentence):
    url, served = server
    put(served)
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(change(url),)))
    with pytest.raises(data.DataError, match=sentence):
        data.fetch("mnist")


def test_an_address_that_leads_away_from_https_is_not_followed(monkeypatch):
    class Elsewhere(io.BytesIO):
        def geturl(self):
            return "http://elsewhere.invalid/"

    monkeypatch.setattr(files, "urlopen", lambda url, timeout: Elsewhere(b"x"))
    with pytest.raises(OSError, match="it is not an https address"):
        files.fetched("https://here.invalid/", sources.SOURCES["mnist"].files[0])


def test_a_download_ends_at_the_pinned_size_and_after_its_time(tmp_path, monkeypatch):
    """The server would go on for ever, slowly or fast."""
    seconds = [0.0]

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(seconds[0])

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}/"
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    with pytest.raises(data.DataError, match="it is longer than"):
        data.fetch("mnist")
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    seconds[0] = 0.05
    with pytest.raises(data.DataError, match="it takes too long"):
        data.fetch("mnist")
    monkeypatch.setattr(files, "PATIENCE", 60)
    monkeypatch.setattr(files, "SILENCE", 0.2)
    seconds[0] = 3600
    with pytest.raises(data.DataError, match="timed out"):
        data.fetch("mnist")
    http.shutdown()
    http.server_close()
    assert list((tmp_path / "checkout/mnist").iterdir()) == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_file_that_holds_more_than_any_data_set_is_refused_without_reading_it_all(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(files, "LARGEST", 1 << 20)
    put(tmp_path / "checkout/mnist", CONTENT | {NAMES[0]: pack(bytes(64 << 20))})
    tracemalloc.start()
    for verify in (True, False):
        with pytest.raises(data.DataError, match=rf"{NAMES[0]} (is damaged|cannot be used)"):
            data.load("mnist", verify=verify)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert not data.available("mnist")


def test_loading_never_downloads(monkeypatch, server):
    url, served = server
    monkeypatch.setitem(sources.SOURCES, "mnist", source(urls=(url,)))
    put(served)
    with pytest.raises(data.DataError, match="is not on this machine"):
        data.load("mnist")


# ------------------------------------------------------------------ CIFAR-10


def records(n, first=0):
    """Records whose label and pixels tell their number."""
    numbers = np.arange(first, first + n)
    table = np.empty((n, files.RECORD), np.uint8)
    table[:, 0] = numbers % 10
    table[:, 1:] = (numbers % 251)[:, None]
    table[:, 1 + 1024 : 1 + 1030] = (numbers // 251)[:, None]
    return table


def archive(batches):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name, raw in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return packed.getvalue()


@pytest.fixture(scope="module")
def cifar():
    """An archive whose first batch goes on after its first 4,000 records, and the slice of those."""
    batches = {f"data_batch_{i}.bin": records(4005 if i == 1 else 2, 100 * i).tobytes() for i in range(1, 6)}
    batches |= {"test_batch.bin": records(3, 7).tobytes(), "readme.html": b"<html>"}
    first = batches["data_batch_1.bin"][: 4000 * files.RECORD]
    return batches, archive(batches), first, lzma.compress(first, preset=0)


@pytest.fixture
def tiny_cifar(cifar, monkeypatch):
    _, packed, first, sliced = cifar
    digest = hashlib.sha256(first).hexdigest()
    monkeypatch.setattr(files, "CIFAR10_4K_RECORDS", digest)
    shape = {"size": (3, 32, 32), "folders": ("cifar10",)}
    whole = source({"cifar-10-binary.tar.gz": packed}, reader="cifar_archive", **shape)
    part = source({"data_batch_1.first4000.bin.xz": sliced}, reader="cifar_slice", **shape)
    monkeypatch.setitem(sources.SOURCES, "cifar10", whole)
    monkeypatch.setitem(sources.SOURCES, "cifar10_4k", part)
    return {"cifar-10-binary.tar.gz": packed}, {"data_batch_1.first4000.bin.xz": sliced}


def test_cifar_records_become_channels_first_images(tmp_path, tiny_cifar, cifar):
    put(tmp_path / "checkout/cifar10", tiny_cifar[0])
    loaded = data.load("cifar10")
    batches = cifar[0]
    expected = np.concatenate([np.frombuffer(batches[f"data_batch_{i}.bin"], np.uint8) for i in range(1, 6)])
    expected = expected.reshape(-1, files.RECORD)
    assert loaded.train.y.tolist() == expected[:, 0].tolist()
    pixels = (loaded.train.x * 255).round().byte().numpy()
    assert pixels.shape == (4013, 3, 32, 32)
    for i in (0, 4000, 4012):
        for c in range(3):
            row_major = expected[i, 1 + 1024 * c : 1 + 1024 * (c + 1)].reshape(32, 32)
            assert (pixels[i, c] == row_major).all()
    assert len(loaded.test.y) == 3


def test_the_slice_cut_from_the_archive_equals_the_slice_file(tmp_path, tiny_cifar):
    put(tmp_path / "whole/cifar10", tiny_cifar[0])
    put(tmp_path / "part/cifar10", tiny_cifar[1])
    cut, stored = (data.load("cifar10_4k", data_dir=tmp_path / place) for place in ("whole", "part"))
    for part in ("train", "test"):
        assert torch.equal(getattr(cut, part).x, getattr(stored, part).x)
        assert torch.equal(getattr(cut, part).y, getattr(stored, part).y)
    assert (len(cut.train.y), len(cut.test.y)) == (3000, 1000)
    assert cut.test.y[0] == (100 + 3000) % 10
    assert cut.verified
    assert stored.verified
    assert data.available("cifar10_4k", data_dir=tmp_path / "whole")
    assert data.available("cifar10_4k", data_dir=tmp_path / "part")
    assert not data.available("cifar10_4k")


def test_a_lossy_slice_is_refused_even_when_digests_are_not_asked_for(tmp_path, tiny_cifar, cifar):
    lossy = bytearray(cifar[2])
    lossy[5000] ^= 1
    put(tmp_path / "checkout/cifar10", {"data_batch_1.first4000.bin.xz": lzma.compress(bytes(lossy), preset=0)})
    with pytest.raises(data.DataError, match=r"does not hold the original first 4,000 CIFAR-10 images \(a lossy copy"):
        data.load("cifar10_4k", verify=False)


def test_damaged_archives_are_named(tmp_path, tiny_cifar, cifar):
    for raw, sentence in (
        (tiny_cifar[0]["cifar-10-binary.tar.gz"][:5000], "is damaged"),
        (b"nothing", "is damaged"),
        (archive({"data_batch_1.bin": cifar[2]}), "does not hold CIFAR-10's six batches"),
    ):
        put(tmp_path / "checkout/cifar10", {"cifar-10-binary.tar.gz": raw})
        with pytest.raises(data.DataError, match=sentence):
            data.load("cifar10", verify=False)
    (tmp_path / "checkout/cifar10/cifar-10-binary.tar.gz").unlink()
    for raw, sentence in ((cifar[3][:-9], "is damaged"), (b"nothing", "does not hold the original first 4,000")):
        put(tmp_path / "part/cifar10", {"data_batch_1.first4000.bin.xz": raw})
        assert not data.available("cifar10_4k", data_dir=tmp_path / "part")
        with pytest.raises(data.DataError, match=sentence):
            data.load("cifar10_4k", data_dir=tmp_path / "part", verify=False)


def test_the_slice_has_no_address_of_its_own(tiny_cifar):
    with pytest.raises(data.DataError, match="has no download address: get cifar10 instead"):
        data.fetch("cifar10_4k")


# ------------------------------------------------------------------ the real files, where they are

REAL = paths.data
TABLE = dict(sources.SOURCES)


@pytest.mark.parametrize("name", ["mnist", "two_digits", "fashion_mnist", "cifar10_4k", "cifar10"])
def test_real_files_are_the_pinned_ones(name, monkeypatch):
    monkeypatch.setattr(paths, "data", REAL)
    monkeypatch.setitem(sources.SOURCES, name, TABLE[name])
    if not data.available(name):
        pytest.skip(f"{name} is not on this machine")
    loaded = data.load(name, n_train=200, n_test=100)
    assert loaded.verified
    assert loaded.train.y.bincount().tolist() == [20] * 10
    assert loaded.test.x.shape == (100, *data.image_shape(name))


def test_pinned_tables_are_complete():
    for name, entry in TABLE.items():
        assert len(entry.classes) == 10, name
        assert len({f.content for f in entry.files}) == len(entry.files)
        for file in entry.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert len(bytes.fromhex(file.content)) == (0 if name == "cifar10" else 32)
            assert file.size > 0
            assert all(url.endswith(file.name) and url.startswith("https://") for url in file.urls)
            assert file.urls or name == "cifar10_4k"


@pytest.mark.parametrize("n", [-1, 5])
def test_a_balanced_draw_has_as_many_places_as_are_asked_for(n):
    y = np.array([0, 1, 1, 0])
    assert [sorted(data.balanced(y, many, 0)) for many in (0, 4)] == [[], [0, 1, 2, 3]]
    with pytest.raises(ValueError, match=f"n is {n}; it must be a whole number from 0 to 4"):
        data.balanced(y, n, 0)
