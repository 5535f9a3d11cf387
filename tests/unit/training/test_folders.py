"""Test which files of a folder are images of which class, and which folders are refused."""

from pathlib import Path

import pytest

from hpo.errors import BadInput
from hpo.training.folders import list_images


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(listing, root):
    return [str(Path(file).relative_to(root)) for file in listing.files]


def test_a_folder_per_class_has_no_test_split(tmp_path):
    touch(tmp_path, "dog/2.jpg", "cat/b.PNG", "cat/a.webp", "dog/old/1.jpeg")

    listing = list_images(tmp_path)

    assert (listing.classes, listing.tests, listing.passed_over) == (("cat", "dog"), None, 0)
    assert names(listing, tmp_path) == ["cat/a.webp", "cat/b.PNG", "dog/2.jpg", "dog/old/1.jpeg"]
    assert listing.labels == (0, 0, 1, 1)


def test_the_images_of_a_test_folder_come_last(tmp_path):
    touch(tmp_path, "train/b/1.png", "train/a/1.png", "train/a/2.png", "test/b/3.png", "test/a/3.png")

    listing = list_images(tmp_path)

    assert (listing.classes, listing.tests) == (("a", "b"), 2)
    assert names(listing, tmp_path) == [
        "train/a/1.png",
        "train/a/2.png",
        "train/b/1.png",
        "test/a/3.png",
        "test/b/3.png",
    ]
    assert listing.labels == (0, 0, 1, 0, 1)


def test_what_is_no_image_is_passed_over_and_counted_and_hidden_folders_are_left(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "README.md", "a/Thumbs.db", "b/deep/notes.txt", ".git/config", ".git/x.png")

    listing = list_images(tmp_path)

    assert names(listing, tmp_path) == ["a/1.png", "b/1.png"]
    assert listing.passed_over == 3


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ((), "{root}: has no class; allowed: two or more folders of images"),
        (("1.png",), "{root}: has no class; allowed"),
        (("a/1.png",), "{root}: has only the class a; allowed"),
        (("a/1.png", "b/x.txt"), "{root}/b: the class has no image; names of images end with .jpg"),
        (("train/a/1.png", "train/b/1.png"), "{root}: has only one of train/ and test/; allowed: both"),
        (("test/a/1.png", "b/1.png"), "{root}: has only one of train/ and test/"),
        (("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/x"), "{root}/test/b: the class has no image"),
        (
            ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"),
            "{root}/train/b: train/ and test/ must have the same classes",
        ),
        (
            ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "val/a/1.png"),
            "{root}/val: not allowed next to train/ and test/",
        ),
    ],
)
def test_a_layout_that_cannot_be_a_data_set_is_refused_with_its_path(tmp_path, files, problem):
    touch(tmp_path, *files)

    with pytest.raises(BadInput) as refused:
        list_images(tmp_path)

    assert str(refused.value).startswith(problem.format(root=tmp_path))


def test_links_are_followed_but_not_in_a_loop(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "data/b/1.png")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert names(list_images(tmp_path / "data"), tmp_path / "data") == ["a/1.png", "b/1.png"]

    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BadInput) as refused:
        list_images(tmp_path / "data")
    assert str(refused.value) == (
        f"{tmp_path}/data/a/back: a link leads back to {tmp_path}/elsewhere, which contains it"
    )


@pytest.mark.parametrize("place", ["a/more", "more"])
def test_a_link_that_leads_to_itself_is_named(tmp_path, place):
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / place).symlink_to(tmp_path / place)

    with pytest.raises(BadInput) as refused:
        list_images(tmp_path)

    assert str(refused.value) == f"{tmp_path / place}: cannot be read: Too many levels of symbolic links"
