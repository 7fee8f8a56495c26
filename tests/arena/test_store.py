import io
import multiprocessing
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from slingstone.arena.store import Contradicted, Drawing, Store, Vote, drawing_key
from slingstone.arena.tokens import Pair, PairTokens, arena_secret
from slingstone.preferences.table import Picture, Preference


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def opened(directory: Path) -> Store:
    return Store(f"sqlite:///{directory}/votes.db", directory / "pictures")


def drawn(store: Store, model: str, level: int, prompt: str = "a red circle") -> str:
    key = drawing_key(prompt, model, level)
    store.keep_drawing(key, Drawing(store.keep_picture(png(level)), prompt, model, model, level, 1, "one_step"))
    return key


def test_a_vote_is_there_after_the_store_was_opened_again(tmp_path):
    store = opened(tmp_path)
    pair = drawn(store, "a", 1), drawn(store, "b", 2)
    store.take(Vote("v1", *pair, "first", "ann", "second", 2.5))
    store.close()
    (vote,) = opened(tmp_path).votes()
    assert (vote["vote"], vote["choice"], vote["voter"], vote["shown_left"]) == ("v1", "first", "ann", "second")
    assert (vote["first"].model, vote["second"].seed) == ("a", 2)


def test_a_vote_that_is_sent_twice_counts_once_and_one_that_changed_is_refused(tmp_path):
    store = opened(tmp_path)
    pair = drawn(store, "a", 1), drawn(store, "b", 2)
    for _ in range(2):
        store.take(Vote("v1", *pair, "first", "ann"))
    with pytest.raises(Contradicted, match="first"):
        store.take(Vote("v1", *pair, "second", "ann"))
    assert store.count() == store.count("ann") == 1


def test_a_vote_that_is_taken_back_stays_in_the_database_and_counts_no_more(tmp_path):
    store = opened(tmp_path)
    pair = drawn(store, "a", 1), drawn(store, "b", 2)
    store.take(Vote("v1", *pair, "first", "ann"))
    assert store.take_back("v1")
    assert not store.take_back("another")
    assert store.votes() == []
    store.take(Vote("v1", *pair, "first", "ann"))  # a late copy of the request changes nothing
    assert store.count() == 0


def _votes(directory: Path, voter: int) -> None:
    store = opened(directory)
    pair = drawn(store, "a", 1), drawn(store, "b", 2)
    for number in range(25):
        store.take(Vote(f"{voter}-{number}", *pair, "tie", f"voter {voter}"))


def test_processes_that_begin_and_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_votes, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert opened(tmp_path).count() == 75


def test_votes_go_out_to_the_table_of_preferences_and_come_back_equal(tmp_path):
    first = Picture(data=png(1), model="a", weights="w", seed=7, steps=1, sampler="one_step")
    given = Preference(
        vote_id="v1",
        prompt="two “cats”\n🐈",
        first=first,
        second=Picture(data=png(2)),
        choice="both_bad",
        voter="ann",
        time=datetime(2026, 1, 2, tzinfo=UTC),
        seconds=1.5,
        shown_left="second",
    )
    store = opened(tmp_path)
    for _ in range(2):
        store.add(given)
    assert list(store.preferences()) == [given]


def test_the_same_picture_is_kept_once_and_a_lost_one_is_drawn_again(tmp_path):
    store = opened(tmp_path)
    key = drawn(store, "a", 1)
    digest = store.keep_picture(png(1))
    files = [file for file in (tmp_path / "pictures").rglob("*") if file.is_file()]
    assert len(files) == 1
    assert store.picture(digest) == png(1)
    files[0].unlink()
    assert store.picture(digest) is None
    assert store.drawing(key) is None


def test_a_database_that_cannot_be_had_is_told_without_its_password(tmp_path):
    with pytest.raises(ValueError, match="does not answer") as caught:
        Store("postgresql+psycopg2://ann:canary@127.0.0.1:1/votes", tmp_path)
    assert "canary" not in str(caught.value)


def test_a_token_names_its_pair_and_no_other(tmp_path):
    pair = Pair(vote="v", voter="ann", first="1", second="2", shown_left="first")
    token = PairTokens("secret").token(pair)
    assert PairTokens("secret").pair(token) == pair
    for wrong in (token[:-2], token[1:], "", "a.b.c", token + "x"):
        with pytest.raises(ValueError, match="another pair"):
            PairTokens("secret").pair(wrong)
    with pytest.raises(ValueError, match="another pair"):
        PairTokens("other").pair(token)


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path, monkeypatch):
    made = arena_secret(tmp_path / "arena")
    assert arena_secret(tmp_path / "arena") == made
    assert len(made) == 64
    assert stat.S_IMODE((tmp_path / "arena" / "secret").stat().st_mode) == 0o600
    monkeypatch.setenv("SLINGSTONE_ARENA_SECRET", "given")
    assert arena_secret(tmp_path / "arena") == "given"
