"""Bytes at an address: atomic, refused where a shell would run."""

import os
from itertools import product

import pytest

from scaleaudio.data import addresses, storage
from scaleaudio.errors import InputError


def test_a_written_file_reads_back_whole(tmp_path):
    url = f"{tmp_path}/deep/er/file.bin"
    storage.write_atomic(url, bytes(range(100)))
    assert storage.read_bytes(url) == bytes(range(100))
    assert storage.read_bytes(f"file://{url}") == bytes(range(100))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.tar"):
        storage.read_bytes(f"{tmp_path}/nothing.tar")


def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(tmp_path):
    url = f"{tmp_path}/index.parquet"
    storage.write_atomic(url, b"old")

    def interrupted():
        with storage.open_atomic(url) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert storage.read_bytes(url) == b"old"
    assert os.listdir(tmp_path) == ["index.parquet"]


@pytest.mark.parametrize("url", ["pipe:touch /tmp/owned", "PIPE:ls", "ftp://host/x"])
def test_shell_and_unknown_schemes_are_refused_and_the_known_ones_listed(url):
    with pytest.raises(InputError, match="s3://"):
        storage.open_url(url)


@pytest.mark.parametrize(
    ("url", "parts", "expected"),
    [
        ("a/b/", ("c", "d.tar"), "a/b/c/d.tar"),
        ("/", ("x",), "/x"),
        ("s3://bucket/a?region=r", ("b",), "s3://bucket/a/b?region=r"),
        ("what?/a", ("b",), "what?/a/b"),
    ],
)
def test_join_keeps_a_query_last(url, parts, expected):
    assert storage.join(url, *parts) == expected


def test_an_object_store_url_names_bucket_and_key_and_honours_the_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem, path = storage.open_url("s3://bucket/some/key.tar?region=eu-west-1")
    assert path == "bucket/some/key.tar"
    assert filesystem.type_name == "s3" and filesystem.region == "eu-west-1"
    assert addresses._with_endpoint("s3://b/k") == "s3://b/k?scheme=http&endpoint_override=127.0.0.1%3A9"


def test_listing_is_sorted_recursive_and_empty_for_a_missing_folder(tmp_path):
    for name in ("b.tar", "a/c.tar", "a/x.txt"):
        storage.write_atomic(f"{tmp_path}/{name}", b"x")
    assert storage.list_files(str(tmp_path), ".tar") == [f"{tmp_path}/a/c.tar", f"{tmp_path}/b.tar"]
    assert storage.list_files(f"{tmp_path}/none") == []


def test_links_are_followed_and_those_that_lead_in_circles_or_nowhere_end(tmp_path):
    for name in ("src/a/b/x", "apart/y"):
        storage.write_atomic(f"{tmp_path}/{name}", b"x")
    for at, target in [("0", "."), ("a/up", ".."), ("a/b/top", "../.."), ("a/b/self", "self"), ("none", "nothing")]:
        (tmp_path / "src" / at).symlink_to(target)
    (tmp_path / "src" / "linked").symlink_to(tmp_path / "apart")
    assert storage.list_files(f"{tmp_path}/src") == [f"{tmp_path}/src/a/b/x", f"{tmp_path}/src/linked/y"]


def test_a_folder_is_passed_over_however_it_is_spelt(tmp_path, monkeypatch):
    for name in ("src/x", "src/out/y", "src/outer/z"):
        storage.write_atomic(f"{tmp_path}/{name}", b"x")
    (tmp_path / "link").symlink_to("src/out")
    monkeypatch.chdir(tmp_path / "src")
    spellings = ("out", "./out/", "../src/out", f"{tmp_path}/src//out", f"file://{tmp_path}/src/out", "../link")
    for src, outside in product((".", "./", "../src", str(tmp_path / "src"), f"file://{tmp_path}/src"), spellings):
        left = storage.list_entries(src, outside=outside)
        assert [entry.url.rpartition("/")[2] for entry in left] == ["z", "x"], (src, outside)


def test_stat_answers_none_for_what_is_not_a_file(tmp_path):
    storage.write_atomic(f"{tmp_path}/a", b"1234")
    found, missing, folder = storage.stat([f"{tmp_path}/a", f"{tmp_path}/b", str(tmp_path)])
    assert found is not None and found.size == 4
    assert missing is None and folder is None


def test_delete_tree_removes_files_and_folders_and_minds_no_absence(tmp_path):
    storage.write_atomic(f"{tmp_path}/a/b", b"x")
    storage.delete_tree(f"{tmp_path}/a")
    storage.delete_tree(f"{tmp_path}/a")
    assert not storage.exists(f"{tmp_path}/a")


def test_an_empty_path_is_refused_and_does_not_mean_the_root_folder():
    with pytest.raises(InputError, match="an empty path"):
        storage.join("", "audio")
    with pytest.raises(InputError, match="an empty path"):
        storage.open_url("")


@pytest.mark.parametrize(
    ("url", "held"),
    [
        ("s3://AKIA:hunter2@bucket/a", "a password"),
        ("s3://AKIA:hunter2%2F@bucket/a", "a password"),
        ("https://me:hunter2@host/a.tar", "a password"),
        ("abfs://:hunter2@account/a", "a password"),
        ("s3://bucket/a?access_key=hunter2", "access_key"),
        ("s3://bucket/a?region=x&secret_key=hunter2", "secret_key"),
        ("s3://bucket/a?session_token=hunter2", "session_token"),
        ("s3://bucket/a?endpoint_override=me:hunter2%40host", "endpoint_override"),
        ("https://host/a.tar?X-Amz-Signature=hunter2", "X-Amz-Signature"),
        ("https://host/a.tar?sv=1&sig=hunter2", "sig"),
        ("abfs://box@account/a?account_key=hunter2", "account_key"),
        ("https://hunter2@host/a.tar", "a name or token"),
        ("HTTP://hunter2@host/a.tar", "a name or token"),
        ("s3://AKIA:hunter2@/a", "a password"),
        ("https://me:a/hunter2@host/x", "a password"),
        ("https://me:hunter2/a@host/x", "a password"),
        ("https://me:hunter2?a@host/x", "a password"),
        ("s3://AKIA:hunter2/de@bucket/x", "a password"),
        ("https://host/a.tar#token=hunter2", "token"),
        ("https://host/a.tar?x=1#access_token=hunter2", "access_token"),
        ("https://host/a.tar?x=1;token=hunter2", "token"),
        ("https://host/a.tar?X-Amz-Credential=hunter2", "X-Amz-Credential"),
        *((f"https://host/a.tar?{key}=hunter2", key) for key in ("auth", "pwd", "jwt", "code", "credential")),
    ],
)
def test_an_address_with_credentials_is_refused_without_repeating_them(url, held):
    for use in (storage.open_url, storage.read_bytes, storage.list_entries, storage.exists):
        with pytest.raises(InputError, match="credentials come from the environment") as caught:
            use(url)
        assert held in str(caught.value) and "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a?region=eu-west-1&endpoint_override=host:9",
        "abfs://box@account.dfs.core.windows.net/a",
        "a@b:c?key=1",
        "https://host/a@b.tar?encoding=utf-8&author=me",
        "https://host:8080/a@b.tar#part",
        "http://[::1]:8080/a@b.tar",
        "s3://bucket/a#1@b.tar",
    ],
)
def test_an_address_without_credentials_is_not(url):
    assert addresses.check_no_credentials(url) == url


def test_a_config_never_holds_credentials_nor_shows_them_when_it_refuses():
    from pydantic import ValidationError

    from scaleaudio.data.stream import DataConfig

    with pytest.raises(ValidationError, match="holds a password") as caught:
        DataConfig(url="s3://AKIA:hunter2@bucket/a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("verb", [storage.delete_tree, lambda url: storage.write_atomic(url, b"x")])
def test_the_web_is_not_written_to(verb):
    with pytest.raises(InputError, match="can only be read"):
        verb("http://127.0.0.1:9/a")
