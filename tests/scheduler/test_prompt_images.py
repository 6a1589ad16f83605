"""Prompts with images: what plans name, which prefixes are shared, and how long embeddings are held."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.messages import Embedded, ImageBlock, ImageInfo, ImageSpan, Tokenized
from lightllm_mp.plan import unpack
from lightllm_mp.scheduler import kv_memory
from lightllm_mp.scheduler.integrity import IntegrityError
from lightllm_mp.scheduler.prompt_images import prompt_images
from lightllm_mp.vision.sizing import PatchGrid, PlacedImage, mrope_positions
from tests.scheduler.harness import VOCAB, Harness, harness, mock_worker, prompt, request
from tests.scheduler.mock_images import Part, image_prompt
from tests.scheduler.test_disruption import expect_short_answers

CAT, DOG = ("cat", 9), ("dog", 5)
both_depths = pytest.mark.parametrize("depth", [0, 1])


def picture(rid: int, *parts: Part, **rules: object) -> Tokenized:
    ids, spans = image_prompt(VOCAB, *parts)
    return request(rid, ids, spans=spans, **rules)


def named(h: Harness) -> list[list[int]]:
    """(row, position, count, first) of the images of plans that are not answered yet."""
    return [[*line[:3], line[5]] for plan in h.plans for line in unpack(plan).images.tolist()]


@both_depths
@pytest.mark.parametrize("step_tokens", [1, 2, 7, 64])
def test_chunks_name_the_part_of_an_image_that_they_compute(depth: int, step_tokens: int) -> None:
    h = harness(depth, step_tokens=step_tokens)
    h.add(picture(1, prompt(4), CAT, prompt(3), DOG, CAT, prompt(2)))
    h.add(picture(2, CAT), request(3, prompt(20)))
    h.add(picture(4, prompt(3, 4), DOG, n=3, temperature=1.0))
    h.run().check_answers()
    assert sorted(h.images.released) == [1, 2, 4]


def test_what_a_plan_says() -> None:
    h = harness(1, step_tokens=8)
    h.add(picture(1, prompt(3), CAT, DOG, prompt(1)))
    h.step()
    assert named(h) == [[0, 3, 5, 0]]
    h.step()
    assert named(h) == [[0, 8, 4, 5], [0, 12, 4, 0]]
    h.run().check_answers()


def test_a_cached_image_is_not_read() -> None:
    h = harness()
    h.add(picture(1, prompt(4), CAT, prompt(6)))
    h.run()
    h.add(picture(2, prompt(4), CAT, prompt(5, 3)))
    plan = h.scheduler.plan()
    assert plan is not None
    assert len(unpack(plan).images) == 0
    h.plans.append(plan)
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 13


def test_another_image_shares_the_text_before_it_alone() -> None:
    h = harness()
    h.add(picture(1, prompt(4), CAT, prompt(6)))
    h.run()
    h.add(picture(2, prompt(4), ("cow", 9), prompt(6)))
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 4


@pytest.mark.parametrize("same", [1, 3])
def test_images_whose_first_ids_are_equal_are_not_mixed_up(same: int) -> None:
    """Ids may be equal by chance or by design. Neither matching nor inserting into the tree may mix the images."""
    ids, spans = image_prompt(VOCAB, prompt(4), CAT, prompt(6))
    like = list(ids)
    like[4 + same : 13] = image_prompt(VOCAB, ("cow", 9))[0][same:]
    h = harness()
    h.add(request(1, ids, spans=spans))
    h.run()
    twin = request(2, like, spans=(ImageSpan(4, ImageInfo(b"cow", 0, 0, 9)),))
    told = h.images.embed(twin)
    h.images._memory[-9:] = like[4:13]  # the embeddings of the twin's image
    h.requests[2] = twin
    h.scheduler.add(twin, told)
    h.run().check_answers()
    assert h.opened[2].cached_tokens == 4
    h.add(request(3, ids, spans=spans))
    h.run().check_answers(3)
    assert h.opened[3].cached_tokens == len(ids) - 1


def test_the_guard_against_equal_ids_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard, the test above sees the other image's KV."""
    monkeypatch.setattr(kv_memory, "sure_match", lambda matched, spans, whole: matched)
    with pytest.raises(AssertionError):
        test_images_whose_first_ids_are_equal_are_not_mixed_up(1)


@both_depths
@pytest.mark.parametrize("after", range(9))
def test_abort_at_every_stage_gives_the_lease_back_once_nobody_reads(depth: int, after: int) -> None:
    """The mock worker executes a plan as late as possible; a block that is free by then has no embeddings."""
    h = harness(depth, rows=3, step_tokens=6)
    h.add(*[picture(rid, prompt(5, rid), CAT, DOG, prompt(4, rid), max_new_tokens=4) for rid in range(1, 6)])
    for _ in range(after):
        h.step()
    for rid in (1, 2, 5):
        h.scheduler.abort(rid)
        h.scheduler.abort(rid)
    h.listen()
    h.scheduler.check_integrity()
    h.run().check_answers(3, 4)
    assert sorted(h.images.released) == [1, 2, 3, 4, 5]


def test_a_lease_outlives_its_sequence_while_a_step_may_read_it() -> None:
    h = harness(1, step_tokens=6)
    h.add(picture(1, CAT, prompt(9)))
    assert h.step()
    h.scheduler.abort(1)
    h.listen()
    assert list(h.images.leases) == [1]
    h.scheduler.check_integrity()
    h.run()
    assert h.images.released == [1]


@both_depths
def test_n_answers_share_one_lease(depth: int) -> None:
    h = harness(depth)
    h.add(picture(10, prompt(3), CAT, prompt(2), n=3, temperature=1.0, ignore_eos=True, max_new_tokens=5))
    h.step()
    h.step()
    h.scheduler.abort(10)
    h.scheduler.abort(12)
    h.listen()
    assert h.images.released == []
    h.run().check_answers(11)
    assert h.images.released == [10]


@both_depths
def test_preempted_sequences_read_their_images_again(depth: int) -> None:
    h = harness(depth, kv_tokens=120)
    expect_short_answers(h)
    rules = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 1.0}
    h.add(*[picture(rid, prompt(2, rid), (f"image {rid}", 6), **rules) for rid in range(1, 9)])
    h.run().check_answers()
    assert h.scheduler.gauges()["preemptions"] > 0
    assert sorted(h.images.released) == list(range(1, 9))


@both_depths
@pytest.mark.parametrize("keep_cache", [False, True])
@pytest.mark.parametrize("after", range(0, 10, 3))
def test_a_reset_in_the_middle(depth: int, keep_cache: bool, after: int) -> None:
    h = harness(depth, step_tokens=8)
    h.add(*[picture(rid, prompt(6, rid), CAT, prompt(3, rid % 2), DOG, max_new_tokens=6) for rid in range(1, 5)])
    for _ in range(after):
        h.step()
    h.scheduler.reset(keep_cache)
    h.listen()
    h.scheduler.check_integrity()
    if not keep_cache:
        h.worker = mock_worker(h.scheduler.limits, h.images)
    ended = set(h.finish)
    h.resume()
    h.run().check_answers()
    assert {1, 2, 3, 4} - ended <= set(h.images.released)


def test_a_lease_that_nobody_holds_is_noticed() -> None:
    h = harness()
    h.add(picture(1, CAT))
    h.scheduler._leases.held[7] = 1
    with pytest.raises(IntegrityError, match="hold images"):
        h.scheduler.check_integrity()


def test_ids_of_images_stay_inside() -> None:
    """The detokenizer gets only ids of the vocabulary."""
    h = harness()
    h.add(picture(1, prompt(3), CAT, prompt(2, 1), DOG, prompt(4, 2), prompt_logprobs=2))
    h.add(picture(2, prompt(3), CAT, prompt_logprobs=0), picture(3, CAT, DOG, prompt_logprobs=0))
    h.run().check_answers()
    text = [*prompt(3), *prompt(2, 1), *prompt(4, 2)]
    scores = h.scores[1]
    assert np.frombuffer(scores.ids, "<i4").tolist() == text
    assert np.frombuffer(scores.logprobs, "<f4").tolist() == [-(token % 97) / 8 for token in text[1:]]
    assert np.frombuffer(scores.top_ids, "<i4").reshape(-1, 2)[:, 0].tolist() == text[1:]
    assert len(scores.top_logprobs) == len(scores.top_ids)
    assert np.frombuffer(h.opened[1].prompt_tail, "<i4").tolist() == prompt(4, 2)
    assert np.frombuffer(h.scores[2].ids, "<i4").tolist() == prompt(3)
    assert len(h.scores[2].logprobs) == 4 * 2
    assert (h.opened[2].prompt_tail, h.scores[3].ids, h.scores[3].logprobs) == (b"", b"", b"")


def test_ids_beyond_the_vocabulary_are_for_images_only() -> None:
    h = harness()
    ids, spans = image_prompt(VOCAB, prompt(4), CAT, prompt(2))
    with pytest.raises(InvalidRequest, match="token ids lie in"):
        h.scheduler.add(request(1, ids))
    with pytest.raises(InvalidRequest, match="token ids lie in"):
        h.add(request(1, [*ids, VOCAB], spans=spans))
    h.images.release(1)
    with pytest.raises(InvalidRequest, match="token ids lie in"):
        h.add(request(1, ids, emitted=[VOCAB + 7], spans=spans))
    h.images.release(1)
    with pytest.raises(PromptTooLong):
        h.add(picture(1, *[CAT] * 40))
    assert not h.scheduler.has_work
    h.scheduler.check_integrity()


@pytest.mark.parametrize(("start", "count"), [(-1, 9), (3, 9), (4, 0), (14, 9), (4, 10)])
def test_spans_that_do_not_fit_are_a_bug(start: int, count: int) -> None:
    ids, _ = image_prompt(VOCAB, prompt(4), CAT, prompt(2))
    with pytest.raises(ValueError, match="request 1"):
        harness().add(request(1, ids, spans=(ImageSpan(start, ImageInfo(b"cat", 0, 0, count)),)))


def test_embeddings_that_do_not_fit_are_a_bug() -> None:
    asked = picture(1, prompt(4), CAT)
    for told in (None, Embedded(1, ()), Embedded(1, (ImageBlock(b"cat", 0, 8, 1),))):
        with pytest.raises(ValueError, match="no embeddings"):
            harness().scheduler.add(asked, told)


def test_positions_of_three_components() -> None:
    grids = [(1, 4, 6), (1, 8, 4)]
    ids = prompt(20)
    images = ImageInfo(b"a", 0, 0, 6, grids[0]), ImageInfo(b"b", 0, 0, 8, grids[1])
    spans = (ImageSpan(3, images[0]), ImageSpan(11, images[1]))
    blocks = Embedded(1, (ImageBlock(b"a", 0, 6, 1), ImageBlock(b"b", 64, 8, 1)))
    found = prompt_images(request(1, ids, spans=spans), blocks)
    assert found is not None
    expected, delta = mrope_positions(
        20, [PlacedImage(3, PatchGrid(*grids[0])), PlacedImage(11, PatchGrid(*grids[1]))], 2
    )
    assert found.shift == delta
    assert np.array_equal(found.rotary_rows(0, 20), expected[:, :19].T)
    assert np.array_equal(found.rotary_rows(5, 12), expected[:, 5:12].T)
    assert len(found.rotary_rows(19, 20)) == 0
    assert (expected[:, 19] == 19 + delta).all()
