"""ResNet and U-Net by torch.nn.functional and torchvision's rule of names; ImageNet weights from the download to the
first convolution.
"""
import hashlib
import http.server
import io
import threading

import pytest
import torch
import torch.nn.functional as F

from models.compared.resnet import ResNet, load_imagenet
from models.compared.unet import UNet
from utils import weights
from utils.errors import UserError

NARROW = {34: 0.25, 50: 0.125}    # widths for tests of what does not depend on it


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def published_shapes(depth):
    """{name: shape} of torchvision's weights: a stem, 3 + 4 + 6 + 3 blocks of 64, 128, 256 and 512 channels, 1000
    classes.
    """
    kernels, expansion = ((3, 3), 1) if depth == 34 else ((1, 3, 1), 4)
    shapes = {}

    def convolution(prefix, conv, norm, outputs, inputs, kernel):
        shapes[f"{prefix}{conv}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update({f"{prefix}{norm}.{name}": (outputs,
                       ) for name in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{prefix}{norm}.num_batches_tracked"] = ()
    convolution("", "conv1", "bn1", 64, 3, 7)
    before = 64
    for layer, (blocks, channels) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        after = expansion * channels
        for block in range(blocks):
            prefix, inputs = f"layer{layer}.{block}.", before
            for number, kernel in enumerate(kernels, start=1):
                outputs = after if number == len(kernels) else channels
                convolution(prefix, f"conv{number}", f"bn{number}", outputs, inputs, kernel)
                inputs = outputs
            if block == 0 and before != after:
                convolution(prefix, "downsample.0", "downsample.1", after, before, 1)
            before = after
    return shapes | {"fc.weight": (1000, before), "fc.bias": (1000,)}


def published(depth, tracked=True):
    return {name: torch.rand(shape) if shape else torch.tensor(7) for name, shape in published_shapes(depth).items()
            if tracked or not name.endswith("num_batches_tracked")}


def count(module):
    return sum(p.numel() for p in module.parameters())


def moved(network):
    """The network in evaluation, with running statistics of its own."""
    for name, value in network.named_buffers():
        if "running_mean" in name:
            value.uniform_(-0.2, 0.2)
        elif "running_var" in name:
            value.uniform_(0.5, 1.5)
    return network.eval()


# ResNet

@pytest.mark.parametrize("depth, millions", [(34, 21.798), (50, 25.557)])
def test_names_and_shapes_are_torchvisions(depth, millions):
    """He et al., 2016: the printed networks have 21.8 M and 25.6 M parameters."""
    with torch.device("meta"):
        network = ResNet(depth, 3, 1000)
        assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_shapes(depth)
        assert round(count(network) / 1e6, 3) == millions
        assert depth == 34 or round(count(ResNet(50, 3, 15)) / 1e6, 1) == 23.5          # facts/baselines.md


def naive_norm(x, state, name):
    """Batch norm by the equation, over tiles and pixels."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance
                         + 1e-5).sqrt() * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)


@pytest.mark.parametrize("depth", [34, 50])
@pytest.mark.parametrize("layer, number, stride", [("layer1", 0, 1), ("layer2", 0, 2), ("layer3", 1, 1)])
def test_block_by_functions(depth, layer, number, stride):
    """He et al., 2016, figure 5: ReLU(F(x) + x), x projected where its size or channels change; the stride is in the
    first 3 x 3.
    """
    block = getattr(ResNet(depth, 3, 5, 1 / 16), layer)[number].double()
    state = dict(block.named_parameters())
    for value in state.values():
        torch.nn.init.normal_(value)
    steps = [(1, stride), (1, 1)] if depth == 34 else [(0, 1), (1, stride), (0, 1)]      # padding, stride
    x = torch.randn(2, state["conv1.weight"].shape[1], 9, 7, dtype=torch.float64, requires_grad=True)
    y = x
    for i, (padding, step) in enumerate(steps, start=1):
        y = naive_norm(F.conv2d(F.relu(y) if i > 1 else y, state[f"conv{i}.weight"], stride=step, padding=padding),
                       state, f"bn{i}")
    is_projected = "downsample.0.weight" in state
    assert is_projected == (stride > 1 or (number == 0 and depth == 50))
    if is_projected:
        y = y + naive_norm(F.conv2d(x, state["downsample.0.weight"], stride=stride), state, "downsample.1")
    else:
        y = y + x
    found, wanted = block(x), F.relu(y)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.sin().sum(), [x, *state.values()]) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("depth", [34, 50])
def test_stem_pool_and_head_by_functions(depth):
    """He et al., 2016, table 1: 7 x 7 of stride 2, 3 x 3 max-pool of stride 2, four stages, mean over the pixels, one
    linear layer.
    """
    network = ResNet(depth, 4, 5, NARROW[depth]).double()
    x = torch.randn(2, 4, 70, 64, dtype=torch.float64)
    maps = network.pyramid(x)
    stem = F.relu(naive_norm(F.conv2d(x, network.conv1.weight, stride=2, padding=3), dict(network.named_parameters()),
                             "bn1"))
    torch.testing.assert_close(maps[0], stem)
    torch.testing.assert_close(maps[1], network.layer1(F.max_pool2d(stem, 3, 2, 1)))
    mean = sum(maps[4][:, :, i, j] for i in range(3) for j in range(2)) / 6
    torch.testing.assert_close(network(x), mean @ network.fc.weight.t() + network.fc.bias)
    network.fc = torch.nn.Identity()
    assert ResNet(depth, 4, 0, NARROW[depth]).state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(network(x), mean)


@pytest.mark.parametrize("depth, channels", [(34, [64, 64, 128, 256, 512]), (50, [64, 256, 512, 1024, 2048])])
def test_pyramid_sizes(depth, channels):
    """Strides 2 to 32; on the meta device, where a wait for the GPU's values would be an error."""
    with torch.device("meta"):
        network = ResNet(depth, 4, 15)
        for height, width in ((288, 320), (1280, 300)):
            sizes = [tuple(y.shape) for y in network.pyramid(torch.zeros(2, 4, height, width))]
            assert sizes == [(2, d, -(-height // s), -(-width // s)) for d, s in zip(channels, (2, 4, 8, 16, 32))]
        assert network.channels == channels and network(torch.zeros(2, 4, 300, 33)).shape == (2, 15)
        assert ResNet(depth, 4, 0)(torch.zeros(2, 4, 300, 33)).shape == (2, channels[-1])
        assert ResNet(depth, 4, 15, 0.25).channels == [d // 4 for d in channels]


def test_initialisation_is_he():
    """He et al., 2015: the variance of a convolution's weights is 2 over its outgoing connections."""
    for module in ResNet(50, 3, 5, 0.5).modules():
        if isinstance(module, torch.nn.Conv2d):
            wanted = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            # 4 standard deviations of the fewest weights
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize("depth", [34, 50])
def test_resnet_trains_and_does_not_mix_tiles(depth):
    """Gradients reach all parameters, one tile is a batch; in evaluation the logits of a tile are its own."""
    network = ResNet(depth, 4, 5, NARROW[depth])
    x = torch.randn(2, 4, 48, 48)
    for batch in (x[:1], x):
        network.zero_grad()
        network(batch).square().sum().backward()
        assert [name for name,
                p in network.named_parameters() if p.grad is None or not p.grad.any()
                or not p.grad.isfinite().all()] == []
    moved(network)
    logits = network(x)
    torch.testing.assert_close(torch.cat([network(tile[None]) for tile in x]), logits, rtol=0, atol=1e-3)
    assert (logits - logits[0]).abs().amax(1)[1:].min() > 0.1


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="34 or 50 here, not 18"):
        ResNet(18, 3, 5)


# ImageNet weights in a network

@pytest.mark.parametrize("depth, tracked", [(34, True), (50, False)])
def test_published_weights_load(depth, tracked, tmp_path):
    """All but fc's are the file's; files of before num_batches_tracked are complete."""
    state = published(depth, tracked)
    torch.save(state, tmp_path / "file.pth")
    network = ResNet(depth, 3, 5)
    fc = network.fc.weight.clone()
    load_imagenet(network, torch.load(tmp_path / "file.pth", weights_only=True), ("R", "G", "B"))
    loaded = network.state_dict()
    assert [name for name in state if not name.startswith("fc.") and not torch.equal(loaded[name], state[name])] == []
    assert torch.equal(network.fc.weight, fc) and all(p.requires_grad for p in network.parameters())


def test_filters_go_to_bands_by_name():
    """The filters of R, G and B to the bands of these names, their mean to others, scaled by 3 / C."""
    state = published(34)
    r, g, b = state["conv1.weight"].unbind(1)
    grey = (r + g + b) / 3
    for bands, wanted in {("NIR", "G", "B", "R"): [grey, g, b, r],
                          ("R", "G", "B", "NIR", "elevation"): [r, g, b, grey, grey],
                          ("RG", "R"): [grey, r]}.items():
        network = ResNet(34, len(bands), 0)
        load_imagenet(network, state, bands)
        torch.testing.assert_close(network.conv1.weight, torch.stack(wanted, 1) * 3 / len(bands))


def test_grey_image_gives_the_same_features_through_more_bands():
    """The scale of the adapted filters: equal bands are seen as by the network of three."""
    state = moved(ResNet(34, 3, 1000)).state_dict()
    three, five = ResNet(34, 3, 0).eval(), ResNet(34, 5, 0).eval()
    load_imagenet(three, state, ("R", "G", "B"))
    load_imagenet(five, state, ("R", "G", "B", "NIR", "elevation"))
    x = torch.randn(2, 1, 40, 40)
    assert three(x.expand(-1, 3, -1, -1)).std() > 0.01
    torch.testing.assert_close(five(x.expand(-1, 5, -1, -1)), three(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_wrong_weights_are_refused():
    """By name, and the network stays as it was."""
    state, network = published(34), ResNet(34, 4, 5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    without = {name: value for name, value in state.items() if name != "layer3.1.bn2.bias"}
    for wrong, culprit in [(without, "layer3.1.bn2.bias"), (state | {"head.weight": torch.zeros(1)}, "head.weight"),
                           (state | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, "conv1.weight"),
                           (state | {"fc.bias": torch.zeros(15)}, "fc.bias"),
                           (published_shapes(50), "layer1.0.conv3.weight")]:
        with pytest.raises(ValueError, match=f"not the weights of a ResNet-34 for ImageNet(.|\n)*{culprit}"):
            load_imagenet(network, wrong, ("NIR", "G", "B", "R"))
    with pytest.raises(ValueError, match="takes 4 bands, not 3: R, G, B"):
        load_imagenet(network, state, ("R", "G", "B"))
    with pytest.raises(ValueError, match="for width 1, not 0.25"):
        load_imagenet(ResNet(34, 3, 5, 0.25), state, ("R", "G", "B"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# U-Net

def test_unet_size():
    """facts/baselines.md: 24.4 M with the linear layer 16 -> 15, for 4 bands."""
    with torch.device("meta"):
        assert round((count(UNet(4)) + 17 * 15) / 1e6, 1) == 24.4


@pytest.mark.parametrize("width", [1, 0.25])
def test_unet_sizes(width):
    """Ronneberger et al., 2015: the output has the size of the image; the encoder's maps have strides 2 to 32."""
    with torch.device("meta"):
        network = UNet(4, width)
        for side in (288, 320):
            x = torch.zeros(2, 4, side, 288)
            levels = network.encoder.pyramid(x)
            assert [tuple(y.shape) for y in levels] == [(2, d, side // s, 288 // s) for d,
                                                        s in zip(network.channels, (2, 4, 8, 16, 32))]
            assert network(x).shape == (2, network.dim, side, 288)
        assert network.channels == [int(width * d) for d in (64, 64, 128, 256, 512)] and network.dim == 16 * width
        for shape in ((300, 288), (288, 500)):
            with pytest.raises(ValueError, match=f"multiples of 32 pixels, not {shape[0]} x {shape[1]}"):
                network(torch.zeros(2, 4, *shape))


def test_decoder_by_functions():
    """Each step: every pixel four times, the encoder's map of that size after it, and twice a 3 x 3 convolution, batch
    norm and ReLU.
    """
    network = UNet(4, 0.25).double()
    state = dict(network.decoder.named_parameters())
    for value in state.values():
        torch.nn.init.normal_(value)
    image = torch.randn(2, 4, 64, 32, dtype=torch.float64)
    maps = network.encoder.eval().pyramid(image)
    added = [torch.randn_like(y).requires_grad_() for y in maps]
    levels = [y.detach() + other for y, other in zip(maps, added)]
    x = levels[4]
    for block, skip in enumerate([levels[3], levels[2], levels[1], levels[0], None]):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = x if skip is None else torch.cat([x, skip], 1)
        for i in (1, 2):
            x = F.relu(naive_norm(F.conv2d(x, state[f"{block}.conv{i}.weight"], padding=1), state, f"{block}.bn{i}"))
    found = network(image, added)
    torch.testing.assert_close(found, x)
    gradients = [torch.autograd.grad(out.sin().sum(), [*added, *state.values()]) for out in (found, x)]
    torch.testing.assert_close(*gradients)
    assert all(gradient.any() for gradient in gradients[0])


def test_unet_trains_and_does_not_mix_tiles():
    """Gradients reach all parameters, one tile is a batch; in evaluation the map of a tile is its own."""
    network = UNet(4, 0.25)
    x = torch.randn(2, 4, 64, 64)
    for batch in (x[:1], x):
        network.zero_grad()
        network(batch).mean((2, 3)).square().sum().backward()
        assert [name for name,
                p in network.named_parameters() if p.grad is None or not p.grad.any()
                or not p.grad.isfinite().all()] == []
    moved(network)
    maps = network(x)
    torch.testing.assert_close(torch.cat([network(tile[None]) for tile in x]), maps, rtol=0, atol=1e-3)
    assert (maps - maps[0]).abs().amax((1, 2, 3))[1:].min() > 0.1


# Files of weights

STATE = {"a.weight": torch.arange(6.).view(2, 3), "a.bias": torch.zeros(2)}


def as_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture
def server(monkeypatch):
    """What a host serves, {path: (status, Content-Length, bytes)}, and its address."""
    served = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, length, content = served[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served, f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    thread.join()
    host.server_close()


@pytest.fixture
def row(server, monkeypatch):
    """A function that adds a row "toy" for a file's bytes to the table, and has the host serve it or something else."""
    served, address = server

    def add(content, status=200, length=None, sent=None, is_hashed=True):
        sent = content if sent is None else sent
        served["/toy.pth"] = status, len(sent) if length is None else length, sent
        sha256 = hashlib.sha256(content).hexdigest()[:8] if is_hashed else ""
        entry = weights.Weights("toy.pth", f"{address}/toy.pth", sha256, "a toy")
        monkeypatch.setitem(weights.TABLE, "toy", entry)
    return add


def test_fetched_weights_load(row, tmp_path, monkeypatch):
    """They come once, to a folder that is made; what was cut off is replaced."""
    content, file = as_file(STATE), tmp_path / "weights" / "toy.pth"
    row(content)
    assert weights.fetch("toy", tmp_path / "weights") == weights.find("toy", tmp_path / "weights") == file
    loaded = weights.load("toy", tmp_path / "weights")
    assert loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    file.write_bytes(content[:-9])
    assert weights.fetch("toy", tmp_path / "weights").read_bytes() == content
    monkeypatch.setattr(weights, "urlopen", None)                   # there, and whole: not asked for again
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    assert weights.fetch("toy") == file and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("answer, said", [
    (dict(status=404), "cannot be downloaded .*404"), (dict(status=503), "cannot be downloaded .*503"),
    (dict(sent=b"<html>"), "is {sha256}.*cut off, or another file"),
    (dict(sent=as_file(STATE)[:99], length=2000), "ended after 99 of 2000 bytes"),
    (dict(sent=as_file(STATE)[:99], length=2000, is_hashed=False), "ended after 99 of 2000 bytes")])
def test_failed_download_leaves_what_was_there(row, tmp_path, answer, said):
    row(as_file(STATE), **answer)
    with pytest.raises(UserError, match=said.format(sha256=weights.TABLE["toy"].sha256)) as caught:
        weights.fetch("toy", tmp_path)
    assert weights.TABLE["toy"].url in str(caught.value) and not list(tmp_path.iterdir())
    (tmp_path / "toy.pth").write_bytes(b"of before")
    with pytest.raises(UserError):
        weights.fetch("toy", tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of before"]


def test_a_page_in_place_of_weights_without_a_known_hash(row, tmp_path):
    """It is told, and fetched again."""
    row(b"<html>", is_hashed=False)
    for _ in range(2):
        with pytest.raises(UserError, match="toy.pth: cannot be read as weights"):
            weights.fetch("toy", tmp_path)
    row(as_file(STATE), is_hashed=False)
    weights.fetch("toy", tmp_path)
    assert torch.equal(weights.load("toy", tmp_path)["a.weight"], STATE["a.weight"])


def test_no_network(row, tmp_path, monkeypatch):
    row(b"")
    monkeypatch.setitem(weights.TABLE, "toy", weights.TABLE["toy"]._replace(url="http://127.0.0.1:1/toy.pth"))
    with pytest.raises(UserError,
                       match=f"127.0.0.1:1/toy.pth: cannot be downloaded .*put it at {tmp_path / 'toy.pth'} by hand"):
        weights.fetch("toy", tmp_path)


@pytest.mark.parametrize("name", weights.TABLE)
def test_missing_weights_are_named(name, tmp_path):
    """Where they belong, where they come from, how to check and to get them."""
    file, url, sha256, about = weights.TABLE[name]
    with pytest.raises(UserError) as caught:
        weights.find(name, tmp_path)
    assert all(text in str(caught.value)
               for text in (str(tmp_path / file), url, sha256, about, "python prepare.py weights"))
    assert (len(sha256) >= 8 or name == "dofa") and url.startswith("https://")
    with pytest.raises(UserError, match="no such file"):
        weights.load(name, tmp_path)


@pytest.mark.parametrize("content, said", [
    (as_file(STATE)[:-9], "cannot be read as weights"), (as_file([1, 2]), "other things than a dict of tensors"),
    (as_file({"state": STATE}), "other things than a dict of tensors"),
    (as_file({"a": torch.nn.ReLU()}), "cannot be read as weights")])
def test_files_that_are_no_weights(row, tmp_path, content, said):
    row(content)
    (tmp_path / "toy.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'toy.pth'}: .*{said}"):
        weights.load("toy", tmp_path)


def test_file_of_another_hash(row, tmp_path):
    row(as_file(STATE))
    (tmp_path / "toy.pth").write_bytes(as_file({"a.weight": torch.ones(2, 3)}))
    with pytest.raises(UserError, match=f"{tmp_path / 'toy.pth'}: its sha256 is .*cut off, or another file"):
        weights.load("toy", tmp_path)
