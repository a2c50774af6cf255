from pathlib import Path

import pytest
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.deploy.targets import SshAccount, TargetConfig, find_target, read_devices

DEVICES = """
[pi]
role = "device"
host = "192.0.2.7"
user = "pi"
port = 2222
key = "~/.ssh/pi"
python = "/usr/bin/python3.13"
providers = ["cpu"]
threads = 4

[big]
role = "server"
root = "/srv/offload"
listen = "0.0.0.0:50051"
insecure = true
cert = "/a.pem"
workers = 2
batch = 8
batch_wait = 0.002
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(DEVICES)
    return path


def test_devices_are_read(devices: Path) -> None:
    known = read_devices(devices)
    assert known["pi"] == TargetConfig(
        "pi",
        ssh=SshAccount("192.0.2.7", "pi", 2222, "~/.ssh/pi"),
        role=Side.DEVICE,
        python="/usr/bin/python3.13",
        providers=("cpu",),
        threads=4,
    )
    assert known["pi"].options == ("--provider", "cpu", "--threads", "4")
    big = known["big"]
    assert (big.ssh, big.root, big.role) == (None, "/srv/offload", Side.SERVER)
    assert big.listen == "0.0.0.0:50051"
    batching = ("--workers", "2", "--batch", "8", "--batch-wait", "0.002")
    assert big.serving == ("--cert", "/a.pem", *batching, "--insecure")
    assert find_target("pi", known) is known["pi"]


def test_no_file_of_devices_is_no_device(tmp_path: Path) -> None:
    assert read_devices(tmp_path / "devices.toml") == {}


@pytest.mark.parametrize(
    ("text", "ssh", "root"),
    [
        ("pi@raspberrypi", SshAccount("raspberrypi", "pi"), "offload"),
        ("pi@192.0.2.7:2222", SshAccount("192.0.2.7", "pi", 2222), "offload"),
        ("pi@192.0.2.7:2222/srv/net", SshAccount("192.0.2.7", "pi", 2222), "/srv/net"),
        ("pi@[2001:db8::7]:22/a b", SshAccount("2001:db8::7", "pi", 22), "/a b"),
        ("/srv/net", None, "/srv/net"),
        ("./a@b", None, str(Path.cwd() / "a@b")),
    ],
)
def test_addresses_are_understood(text: str, ssh: SshAccount | None, root: str) -> None:
    place = find_target(text, {})
    assert (place.name, place.ssh, place.root, place.role) == (text, ssh, root, None)


@pytest.mark.parametrize(
    "text", ["", "@host", "pi@", "pi@host:0", "pi@host:70000", "a@b@c", "p@h:x"]
)
def test_odd_addresses_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        find_target(text, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pi", "is not TOML"),
        ("pi = 3", "is not a table"),
        ("[pi]\nrole = 'device'", "neither host nor root"),
        ("[pi]\nhost = 'h'\nrole = 'both'", "role is 'both'"),
        ("[pi]\nhost = 'h'\nport = 70000", "port is 70000"),
        ("[pi]\nhost = 'h'\nport = true", "port is True"),
        ("[pi]\nhost = 'h'\nproviders = 'cpu'", "providers is 'cpu'"),
        ("[pi]\nhost = 'h'\nthreads = 0", "threads is 0"),
        ("[pi]\nhost = 'h'\nmax_memory = 'much'", 'it must be a size like "2 GB"'),
        ("[pi]\nhost = 'h'\nmax_memory = 2000", "max_memory is 2000"),
        ("[pi]\nhost = 'h'\nbatch = 0", "batch is 0"),
        ("[pi]\nhost = 'h'\nworkers = 0", "workers is 0: it must be a number of workers"),
        ("[pi]\nhost = 'h'\nbatch_wait = -1", "0 to 60 seconds"),
        ("[pi]\nhost = 'h'\npassword = 'x'", "unknown key 'password'"),
    ],
)
def test_wrong_devices_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_devices(path)


def test_a_servers_memory_is_an_option_of_serve(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text("[big]\nhost = 'h'\nmax_memory = '2 GB'\n")
    assert read_devices(tmp_path / "devices.toml")["big"].serving == ("--max-memory", "2 GB")
