"""`knhk definition` against a real server, and versions that outlive `kill -9`."""

from pathlib import Path

from tests.acceptance.server import ROOT, Server

HELLO = ROOT / "examples" / "hello.yaml"


def test_the_commands_of_the_page(server: Server, tmp_path: Path) -> None:
    put = server.cli("definition", "put", str(HELLO), "--label", "1.0.0", "--note", "the first", "-o", "json")
    assert (put["version"], put["created"]) == (1, True)
    changed = tmp_path / "changed.yaml"
    changed.write_text(HELLO.read_text().replace("14", "15"))
    assert server.cli("definition", "put", str(changed), "-o", "json")["version"] == 2
    assert server.cli("definition", "put", str(HELLO), "-o", "json")["created"] is False
    listed = server.cli("definition", "list", "-o", "json")["definitions"]
    assert ("hello", 2) in [(one["name"], one["version"]) for one in listed]
    shown = server.cli("definition", "show", "hello", "-o", "json")
    assert [one["label"] for one in shown["versions"]] == ["1.0.0", None]
    text = server.cli("definition", "show", "hello", "--version", "1.0.0", "-o", "json")["descriptor"]
    assert text == HELLO.read_text()
    assert "15" in server.cli("definition", "diff", "hello", "1", "-o", "json")["diff"]
    submit = ("workflow", "submit", "--name", "hello", "-i", "quantity=2", "--wait", "20s", "-o", "json")
    assert server.cli(*submit, "--version", "1.0.0")["outputs"]["total"] == 28
    assert server.cli(*submit)["outputs"]["total"] == 30
    data = ["--data", str(server.data)]
    assert server.cli("receipts", "verify", shown["record"], *data, "-o", "json")["valid"] is True
    assert server.cli("definition", "retire", "hello", "-o", "json")["retired"] is True
    server.cli(*submit, code=4)
    server.cli("workflow", "submit", str(HELLO), "--name", "hello", code=2)
    server.cli("workflow", "submit", str(HELLO), "--version", "1", code=2)


def test_versions_outlive_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        for number in range(1, 4):
            text = HELLO.read_text().replace("14", str(14 + number))
            answer = server.client.put("/definitions/hello", content=text)
            assert answer.json()["version"] == number
            server.kill()
            server.start()
        body = {"name": "hello", "version": 2, "inputs": {"quantity": 1}}
        answer = server.client.post("/workflows", json=body, params={"wait": "20s"})
        assert answer.json()["outputs"]["total"] == 16, answer.text
        assert server.client.get("/definitions").json()["definitions"][0]["version"] == 3
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()
