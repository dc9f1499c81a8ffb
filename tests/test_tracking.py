import json
from types import SimpleNamespace

from nanogpt import tracking


class Disk:
    """A file on a disk with `room` for some bytes."""

    name = "metrics.jsonl"

    def __init__(self, room: int):
        self.room, self.content = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        self.content += taken
        return len(taken)

    def close(self):
        pass


def test_lines_that_a_full_disk_does_not_take_are_written_later(tmp_path):
    said = []
    alone = SimpleNamespace(is_main_process=True, log_with=[])
    metrics = tracking.Metrics(alone, tmp_path, 0, {}, said.append)
    metrics.file = disk = Disk(room=20)
    for step in range(3):
        metrics.log(step=step, loss=0.5)
    assert len(said) == 1 and "metrics.jsonl could not be written: [Errno 28] No space left on device" in said[0]
    disk.room = 1000
    metrics.close()
    assert [json.loads(line)["step"] for line in disk.content.splitlines()] == [0, 1, 2]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert tracking.read(tmp_path / "metrics.jsonl") == [{"step": 1}]
