"""What is counted, in the text format of Prometheus."""

import re

import pytest

from afina.serving.metrics import Metrics

_SAMPLE = re.compile(r'^([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? (\S+)$')


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.match(line)
            assert match, line
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_the_text_is_prometheus_own() -> None:
    metrics = Metrics()
    metrics.requests.add(1, 'a"b\\c\nd', "/v1/models", "200")
    metrics.requests.add(2, "plain", "/v1/models", "200")
    metrics.generated_tokens.add(7)
    for value in (0.004, 0.3, 700.0):
        metrics.queue.add(value)
    metrics.gauge("afina_kv_bytes", "Bytes.", lambda: 1.5e9)
    metrics.gauge("afina_adapter_info", "Names.", lambda: {("x", "1"): 1.0}, ("model", "generation"))
    text = metrics.text()
    found = samples(text)
    assert found['afina_requests_total{model="plain",route="/v1/models",status="200"}'] == 2
    assert found["afina_generated_tokens_total"] == 7
    assert found["afina_prompt_tokens_total"] == 0
    assert found['afina_queue_seconds_bucket{le="0.005"}'] == 1
    assert found['afina_queue_seconds_bucket{le="0.5"}'] == 2
    assert found['afina_queue_seconds_bucket{le="120"}'] == 2
    assert found['afina_queue_seconds_bucket{le="+Inf"}'] == found["afina_queue_seconds_count"] == 3
    assert found["afina_queue_seconds_sum"] == pytest.approx(700.304)
    assert found["afina_kv_bytes"] == 1.5e9
    assert found['afina_adapter_info{model="x",generation="1"}'] == 1
    assert metrics.requests.total == 3
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["afina_requests"].samples[0].labels["model"] == 'a"b\\c\nd'
