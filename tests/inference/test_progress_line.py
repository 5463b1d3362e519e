import io

import pytest

from tfdp.inference.progress_line import Progress, describe


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0, 100, 0, 0, 0.0), "0/100 rows, 0.0 rows/s, no rows yet"),
        ((50, 100, 0, 50, 25.0), "50/100 rows, 2.0 rows/s, 0:25 left"),
        # 200,000 of the 250,000 were done in this run: they give the rate.
        ((250_000, 1_000_000, 3, 200_000, 100.0),
         "250,000/1,000,000 rows, 2,000 rows/s, 6:15 left, 3 unreadable"),
        ((1, 10_001, 0, 1, 1.0), "1/10,001 rows, 1.0 rows/s, 2:46:40 left"),
    ],
)  # fmt: skip
def test_describe(values, line):
    assert describe(*values) == line


def shown(stream, times):
    now = [0.0]
    progress = Progress(stream, 100, before=0, clock=lambda: now[0])
    for seconds, done in times:
        now[0] = seconds
        progress.show(done, errors=0)
    progress.close()
    return stream.getvalue()


def test_on_a_terminal_one_line_is_written_over():
    assert shown(Terminal(), [(0.1, 1), (1.0, 10), (1.2, 12), (4.0, 90)]) == (
        "\r10/100 rows, 10 rows/s, 0:09 left"
        "\r90/100 rows, 22 rows/s, 0:00 left"
        "\r                                 \r"
    )


def test_in_a_file_there_is_a_line_now_and_then_without_control_codes():
    assert shown(io.StringIO(), [(1.0, 10), (10.0, 40), (15.0, 60), (20.0, 80)]) == (
        "40/100 rows, 4.0 rows/s, 0:15 left\n80/100 rows, 4.0 rows/s, 0:05 left\n"
    )
