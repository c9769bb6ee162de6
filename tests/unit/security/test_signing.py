"""The signing key of a server whose processes start at the same time."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from pathlib import Path
from knhk.security import signing

write_new = signing._write_new

def slowly(path, private):
    time.sleep(float(sys.argv[2]))
    write_new(path, private)

signing._write_new = slowly
print("ready", flush=True)
sys.stdin.readline()
print(signing.Ed25519Signer.load_or_create(Path(sys.argv[1]), 1).public_key.key_id)
"""


def test_processes_that_start_together_have_one_key(tmp_path: Path) -> None:
    command, pipe = [sys.executable, "-c", PROGRAM, str(tmp_path / "keys")], subprocess.PIPE
    processes = [
        subprocess.Popen([*command, seconds], stdin=pipe, stdout=pipe, text=True) for seconds in ("0.3", "0.6", "0.9")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert len(found) == 1, found
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["signing.pem"]
