"""Three hundred requests at one time, a third of them given up, a fifth malformed. The long form, in a process of its
own that is killed, is benchmarks/load.py."""

import asyncio
import sys
from pathlib import Path

import pytest
from serving_client import Client, listening

from afina.core.device import formats
from afina.jobs.serve import ServeSettings, prepared
from afina.serving.http import Access, make_app

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import load


def test_three_hundred_requests_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_bf16_speedup", lambda *_: 1.0)
    load.make(tmp_path)
    runs = tuple(tmp_path / "runs" / name for name in load.PINNED)
    service = prepared(ServeSettings(runs=runs, adapters=tmp_path / "adapters", memory=load.MEMORY))
    app = make_app(service, Access.of(admin_key_file=tmp_path / "admin.key"))
    try:
        with listening(Client(app, service.base, service)) as (port, _):
            asking = load.Load(port, tmp_path, service.base.facts.name)
            assert asyncio.run(asking.run(300, 32, 20)) == 300
            asyncio.run(asking.check_empty(load.MEMORY))
            assert len(asking.told) > 30
            assert len({answer[0] for answer in asking.told.values()}) > len(asking.told) / 3
            asyncio.run(load.repeated(asking, 12))
            asyncio.run(asking.check_unloads())
    finally:
        service.close()
    assert asking.wrong == []
    assert asking.counts["given up in the middle"] > 10
    assert asking.counts["malformed: refused"] > 30
    assert asking.counts["cancelled, as the server counts"] > 10
