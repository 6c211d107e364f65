"""What a reader waits for is said, and a slow user of its batches is not taken for that."""

import io
import os
import re
import sys
import threading

from helpers.loaders import exact, loader, taken


class Told(io.StringIO):
    """A stderr that does something once it was told what is waited for."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def write(self, text):
        super().write(text)
        if "waiting for" in text:
            self.act()


def test_a_reader_that_hangs_is_named_and_gone_on_with_when_it_is_released(data, monkeypatch):
    source, go = loader(data, threads=2, stall=0.2), threading.Event()
    whole, ref = exact(taken(source.evaluate("train", 1, 0, 1))), source.dataset.find("train", 0)[1]
    monkeypatch.setattr(sys, "stderr", Told(go.set))
    monkeypatch.setattr(os, "preadv", lambda *args, real=os.preadv: go.wait(20) and real(*args))
    assert exact(taken(source.evaluate("train", 1, 0, 1))) == whole
    said = sys.stderr.getvalue()
    assert re.match(
        rf"WARNING      no sample for \d s; waiting for sample {ref.key} \({ref.stem}\) of"
        rf" {ref.shard}; its threads are in wait \(threading.py:\d+\)\n$",
        said,
    )


def test_a_slow_user_of_batches_is_not_a_stall(data, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    batches = iter(loader(data, stall=0.05).evaluate("train", 1, 0, 1))
    next(batches)
    threading.Event().wait(0.3)
    next(batches)
    assert not sys.stderr.getvalue()


def test_a_download_that_hangs_is_named_with_how_far_it_is(data, far, server, monkeypatch):
    source, near = far(data, stall=0.2), loader(data)
    server.faults = [("hold", 1000), ("hold", 1000)]
    monkeypatch.setattr(sys, "stderr", Told(server.release.set))
    assert exact(taken(source.evaluate("val", 1, 0, 1))) == exact(
        taken(near.evaluate("val", 1, 0, 1))
    )
    assert re.search(
        rf"waiting for sample \d+ \(x\d+\) of {server.url}/tires/val/shard-000000.tar, downloading"
        r" 0.0 of 0.0 MB",
        sys.stderr.getvalue(),
    )
