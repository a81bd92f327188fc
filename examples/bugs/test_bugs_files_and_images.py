"""Bugs of ``File``, ``CompressedFile`` and ``Image``: wrong bytes, wrong types, lost files."""

from __future__ import annotations

import contextlib
import io
import mimetypes
import sys
import tempfile
import zipfile

import pytest
from fal.toolkit import CompressedFile, File, Image, download_file
from fal.toolkit.file.providers.fal import MultipartUploadV3
from fal.toolkit.image import ImageFormat, read_image_from_url
from gallery import bug
from PIL import Image as PILImage
from pydantic import TypeAdapter, ValidationError

FILES = "Files"
ARCHIVES = "Archives"
IMAGES = "Images"

PHOTO = "https://example.com/photo.png"
ARCHIVE = "https://example.com/batch.zip"


def packed(*names, content="content"):
    """A ZIP archive of text files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.writestr(name, content)
    return archive.getvalue()


def picture(color, format="PNG"):
    """An image file of one colour."""
    file = io.BytesIO()
    PILImage.new("RGB", (64, 64), color).save(file, format)
    return file.getvalue()


@pytest.fixture
def unraisable(monkeypatch):
    """The exceptions that Python could only print, as ``__del__`` may not raise."""
    if pytest.version_tuple < (8, 4):
        pytest.skip("pytest before 8.4 takes sys.unraisablehook for itself in each phase of a test")
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: found.append(str(error.exc_value)))
    return found


# --- saving files --------------------------------------------------------------------------------


@bug(
    *("F1", "P22"),
    symptom="a file disappeared from /data, and I only saved another one beside it",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_saving_a_file_destroys_its_neighbour(fal_origin, fal_data):
    """Saving under one name destroys the file that has the URL's name in the same folder.

    Production: files of other requests or other apps vanish from /data, without any error.
    Expected: only the file that was named is written.
    Happens: the download goes into the folder under the URL's own name, over whatever has that
        name, and is then moved to the name you gave.
    Avoid: save into an empty folder, and move the file from there.
    """
    fal_origin.serve(PHOTO, b"what was asked for")
    fal_data.write("out/photo.png", b"somebody else's")
    File(url=PHOTO).save("/data/out/copy.png")
    assert fal_data.tree() == ["out/copy.png"]

    fal_data.write("out/photo.png", b"somebody else's")
    File(url=PHOTO).save("/data/out/new/photo.png").replace("/data/out/copy.png")
    assert fal_data.tree() == ["out/copy.png", "out/photo.png"]


@bug(
    *("F1", "P22"),
    symptom="a customer got another customer's picture",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_saving_a_file_takes_its_neighbours_content(fal_origin, fal_data):
    """A file of the URL's name and of equal size in the same folder is taken for the download.

    Production: now and then an output has the content of another request's file; raw frames, masks
        and other files of fixed size often have equal sizes, and many URLs end in the same name.
    Expected: the bytes at the URL.
    Happens: name and size fit, so the neighbour counts as downloaded already, and is moved away.
    Avoid: save into an empty folder, and move the file from there.
    """
    fal_origin.serve(PHOTO, b"Alice's")
    fal_data.write("out/photo.png", b"Bobby's")
    File(url=PHOTO).save("/data/out/alice.png")
    assert fal_data.tree() == ["out/alice.png"]
    assert fal_data.read("out/alice.png") == b"Bobby's"

    File(url=PHOTO).save("/data/out/new/photo.png").replace("/data/out/alice.png")
    assert fal_data.read("out/alice.png") == b"Alice's"


@bug(
    "F2",
    symptom="overwrite=True does not overwrite",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_overwriting_keeps_the_old_bytes(fal_origin, fal_data):
    """Saving with overwrite=True keeps the old file where name and size are the same.

    Production: a changed input is processed as it was the first time.
    Expected: the new bytes, which have just been fetched.
    Happens: the fresh download is thrown away, because a file of this name and size is there.
    Avoid: unlink the file before.
    """
    file = fal_origin.serve(PHOTO, b"version 1")
    path = File(url=PHOTO).save("/data/photo.png")
    file.update(b"version 2")
    File(url=PHOTO).save(path, overwrite=True)
    assert path.read_bytes() == b"version 1"

    path.unlink()
    assert File(url=PHOTO).save(path).read_bytes() == b"version 2"


@bug(
    "F3",
    symptom="/data fills up with files that no code of mine writes",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_a_failed_save_leaves_its_download_behind(fal_origin, fal_data):
    """When the last step of saving fails, the downloaded file stays where nobody looks for it.

    Production: each failing request leaves a file in the folder, under the URL's name.
    Expected: nothing is left of a save that failed.
    Happens: only the move fails, here because a folder has the name; the download stays.
    Avoid: save into a tempfile.TemporaryDirectory(), and move the file from there.
    """
    fal_origin.serve(PHOTO, b"pixels")
    fal_data.write("out/latest/index.txt", b"")
    with pytest.raises(IsADirectoryError):
        File(url=PHOTO).save("/data/out/latest", overwrite=True)
    assert fal_data.tree() == ["out/latest/index.txt", "out/photo.png"]


@bug(
    "N4",
    symptom="what I saved is not in /data, although I gave the folder as for downloads",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_save_and_download_file_take_folders_from_different_places(fal_origin, monkeypatch):
    """A relative path is in the working directory for File.save(), and in /data for download_file.

    Production: files that should last are gone with their runner.
    Expected: one meaning for "photos" within the toolkit.
    Happens: the working directory of the process for one, /data for the other.
    Avoid: paths that begin with /data.
    """
    monkeypatch.chdir("/tmp")  # for that of the container
    fal_origin.serve(PHOTO, b"pixels")
    assert str(File(url=PHOTO).save("photos/photo.png")) == "/tmp/photos/photo.png"
    assert str(download_file(PHOTO, "photos")) == "/data/photos/photo.png"

    saved = File(url=PHOTO).save("/data/saved/photo.png")
    assert str(saved) == "/data/saved/photo.png"


@bug(
    "F12",
    symptom="multipart=False uploads in parts nevertheless",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize(
    "options", [{"multipart": False}, {"save_kwargs": {"multipart_threshold": 1_000_000}}]
)
def test_from_path_uploads_in_parts_whatever_one_says(fal_tmp, fal_ledger, monkeypatch, options):
    """from_path ignores multipart=False and multipart_threshold.

    Production: an upload that fails only in parts cannot be sent whole.
    Expected: one request with the whole file.
    Happens: the options decide how the file is read, and are lost on the way to what sends it,
        which goes by its own threshold of 100 MB.
    Avoid: from_bytes, which passes them on.
    """
    monkeypatch.setattr(MultipartUploadV3, "MULTIPART_THRESHOLD", 10)  # for 100 MB
    path = fal_tmp.write("result.obj", b"more than 10 bytes")
    File.from_path(path, **options)
    assert len(fal_ledger.requests(path="/storage/upload/initiate-multipart")) == 1
    assert fal_ledger.requests(path="/storage/upload/initiate") == []

    File.from_bytes(path.read_bytes(), save_kwargs={"multipart": False})
    assert len(fal_ledger.requests(path="/storage/upload/initiate")) == 1


# --- content types -------------------------------------------------------------------------------


@bug(
    *("F10", "P18"),
    symptom="the browser downloads my image instead of showing it",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_from_path_does_not_guess_the_type(fal_cdn, fal_tmp):
    """A file uploaded by its path is a stream of octets, whatever its name says.

    Production: images and videos are downloaded instead of shown; fal's CDN limits the rate of
        uploads whose type it does not know.
    Expected: image/png for output.png, as from_bytes does.
    Happens: application/octet-stream.
    Avoid: give the content type.
    """
    path = fal_tmp.write("output.png", picture("red"))
    assert fal_cdn.info(File.from_path(path).url).content_type == "application/octet-stream"
    assert fal_cdn.info(Image.from_path(path).url).content_type == "application/octet-stream"

    whole = File.from_bytes(path.read_bytes(), file_name="output.png")
    assert fal_cdn.info(whole.url).content_type == "image/png"
    named = Image.from_path(path, content_type="image/png")
    assert fal_cdn.info(named.url).content_type == "image/png"


@pytest.fixture
def image_with_mime_types(fal_tmp, monkeypatch):
    """Start over as in a container image that has these lines in /etc/mime.types."""
    for table in ("_db", "inited", "types_map", "common_types", "suffix_map", "encodings_map"):
        monkeypatch.setattr(mimetypes, table, getattr(mimetypes, table))

    def start_over(*lines):
        path = fal_tmp.write("mime.types", "\n".join(lines))
        monkeypatch.setattr(mimetypes, "knownfiles", [str(path)])
        mimetypes.init()

    return start_over


@bug(
    *("F10", "P18"),
    symptom="the 3D viewer shows my model when I test, and not when it is deployed",
    topic=FILES,
    seen=("1.75.5", "1.83.0"),
)
def test_the_guessed_type_depends_on_the_container(fal_cdn, image_with_mime_types):
    """Which types from_bytes can guess depends on what is installed in the container.

    Production: the same code gives a .glb, .flac or .webp file another type on fal than at home.
    Expected: the same type everywhere.
    Happens: Python knows a few types itself and reads the rest from /etc/mime.types, which slim
        images do not have.
    Avoid: give the content type.
    """
    image_with_mime_types("model/gltf-binary glb")  # a desktop
    at_home = File.from_bytes(b"glTF", file_name="model.glb")
    assert fal_cdn.info(at_home.url).content_type == "model/gltf-binary"

    image_with_mime_types()  # a slim image
    on_fal = File.from_bytes(b"glTF", file_name="model.glb")
    assert fal_cdn.info(on_fal.url).content_type == "application/octet-stream"

    named = File.from_bytes(b"glTF", "model/gltf-binary", "model.glb")
    assert fal_cdn.info(named.url).content_type == "model/gltf-binary"


# --- archives ------------------------------------------------------------------------------------


@bug(
    "F4",
    symptom="a request processed the archive of an earlier request",
    topic=ARCHIVES,
    seen=("1.75.5", "1.83.0"),
)
def test_an_old_archive_in_tmp_is_unpacked(fal_origin, fal_tmp):
    """A file in /tmp with the archive's name and size is unpacked instead, and is then gone.

    Production: a warm runner unpacks what an earlier request left in /tmp; and concurrent requests
        for archives of one name take each other's file, or fail with FileNotFoundError.
    Expected: what is in the archive at the URL.
    Happens: archives are downloaded to /tmp under the URL's own name, and a file of this name and
        size counts as downloaded already. It is moved away, too.
    Avoid: download_file() into an empty folder, and zipfile.
    """
    fal_origin.serve(ARCHIVE, packed("new.txt"))
    fal_tmp.write("batch.zip", packed("old.txt"))
    archive = CompressedFile(url=ARCHIVE)
    assert [path.name for path in archive] == ["old.txt"]
    assert "batch.zip" not in fal_tmp.tree()

    with tempfile.TemporaryDirectory() as empty:
        with zipfile.ZipFile(download_file(ARCHIVE, empty)) as archive:
            assert archive.namelist() == ["new.txt"]


@bug(
    "F5",
    symptom="FileNotFoundError for a file that was in the archive a line before",
    topic=ARCHIVES,
    seen=("1.75.5", "1.83.0"),
)
def test_files_of_an_unnamed_archive_are_gone(fal_origin):
    """The files of an archive are deleted before the first one is read, if nobody holds it.

    Production: a loop over CompressedFile(...) always fails, and works as soon as one debugs it.
    Expected: the files are there as long as the loop runs.
    Happens: the loop holds the list of files only; the archive itself is garbage at once, and
        takes its folder with it.
    Avoid: give it a name that lives as long as its files are needed.
    """
    fal_origin.serve(ARCHIVE, packed("a.txt", "b.txt"))
    with pytest.raises(FileNotFoundError):
        [path.read_text() for path in CompressedFile(url=ARCHIVE)]

    archive = CompressedFile(url=ARCHIVE)
    assert [path.read_text() for path in archive] == ["content", "content"]


@bug(
    "F6",
    symptom="AttributeError in CompressedFile.__del__: no attribute 'extract_dir'",
    topic=ARCHIVES,
    seen=("1.75.5", "1.83.0"),
)
def test_a_refused_archive_complains_when_it_is_deleted(fal_emulator, unraisable):
    """A CompressedFile made from wrong input raises again when it is garbage collected.

    Production: a second traceback in the log, "Exception ignored in"; in tests that take warnings
        for errors, a failure of whichever test runs at that moment.
    Expected: the validation error, and no more.
    Happens: the clean-up asks for a field that was never set.
    Avoid: CompressedFile.model_validate(...), which makes no object of wrong input.
    """
    with contextlib.suppress(ValidationError):
        CompressedFile.model_validate({"url": None})
    assert unraisable == []

    with contextlib.suppress(ValidationError):
        CompressedFile(url=None)
    assert unraisable == ["'CompressedFile' object has no attribute 'extract_dir'"]


@bug(
    "F6",
    symptom="FileNotFoundError: the archive's folder is gone after I copied the request",
    topic=ARCHIVES,
    seen=("1.75.5", "1.83.0"),
)
def test_copies_of_an_archive_share_one_folder(fal_origin, unraisable):
    """Of an archive and its copy, the first one deleted takes away the files of the other.

    Production: code that copies its input, to change a field, cannot read the archive any more.
    Expected: a copy has its own files, or keeps the shared ones.
    Happens: both delete the same folder, the second one with an error that can only be printed.
    Avoid: copy before the first file is read, when there is no folder yet.
    """
    fal_origin.serve(ARCHIVE, packed("a.txt"))
    archive = CompressedFile(url=ARCHIVE)
    list(archive)
    copy = archive.model_copy()
    del archive
    with pytest.raises(FileNotFoundError):
        list(copy)
    del copy
    assert len(unraisable) == 1
    assert unraisable[0].startswith("[Errno 2] No such file or directory: '/tmp/")


@bug(
    "F7",
    symptom="a broken archive was processed without an error: there was nothing in it",
    topic=ARCHIVES,
    seen=("1.75.5", "1.83.0"),
)
def test_a_broken_archive_is_empty_the_second_time(fal_origin):
    """A broken archive raises once; asked again, it is empty.

    Production: code that tries again takes a broken upload for an empty one.
    Expected: the same error each time.
    Happens: the folder has been made by then, so the archive counts as unpacked.
    Avoid: make a new CompressedFile for each attempt.
    """
    fal_origin.serve(ARCHIVE, b"this is no ZIP file")
    archive = CompressedFile(url=ARCHIVE)
    with pytest.raises(zipfile.BadZipFile):
        list(archive)
    assert list(archive) == []

    with pytest.raises(zipfile.BadZipFile):
        list(CompressedFile(url=ARCHIVE))


# --- images --------------------------------------------------------------------------------------


@bug(
    "F8",
    symptom="KeyError: 'JPG' when a caller asks for jpg",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_jpg_is_no_format(fal_cdn):
    """from_pil(format="jpg") raises a KeyError, although "jpg" is among its formats.

    Production: requests that ask for jpg fail with 500.
    Expected: a JPEG.
    Happens: the name is handed on to Pillow, which calls the format JPEG only.
    Avoid: format="jpeg".
    """
    red = PILImage.new("RGB", (8, 8), "red")
    with pytest.raises(KeyError, match="JPG"):
        Image.from_pil(red, format="jpg")

    assert fal_cdn.image(Image.from_pil(red, format="jpeg").url).format == "JPEG"


@bug(
    *("F9", "P18"),
    symptom="JPEGs that my app passes on lose quality, and their type is image/JPEG",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_an_opened_jpeg_gets_another_type_and_quality(fal_cdn):
    """An image that was opened from a file is uploaded as image/JPEG, with Pillow's own quality.

    Production: clients that compare with "image/jpeg" refuse it; its quality is 75, not 95.
    Expected: image/jpeg in quality 95, as with format="jpeg".
    Happens: Pillow calls the format JPEG, and the toolkit's options are those of "jpeg".
    Avoid: name the format in lower case.
    """
    opened = PILImage.open(io.BytesIO(picture("red", "JPEG")))
    url = Image.from_pil(opened).url
    assert fal_cdn.info(url).content_type == "image/JPEG"
    named_url = Image.from_pil(opened, format="jpeg").url
    assert fal_cdn.info(named_url).content_type == "image/jpeg"

    coarse, fine = (sum(fal_cdn.image(u).quantization[0]) for u in (url, named_url))
    assert coarse > 4 * fine


@bug(
    "N8",
    symptom="my JPEGs are refused: image/jpg is no type that the client knows",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_jpg_makes_a_type_that_does_not_exist(fal_cdn):
    """from_bytes(format="jpg") uploads the image as image/jpg; the type is called image/jpeg.

    Production: clients, proxies and APIs that go by the type refuse the picture.
    Expected: image/jpeg.
    Happens: the format is put behind "image/", as it is.
    Avoid: format="jpeg".
    """
    jpeg = picture("red", "JPEG")
    assert fal_cdn.info(Image.from_bytes(jpeg, format="jpg").url).content_type == "image/jpg"

    assert fal_cdn.info(Image.from_bytes(jpeg, format="jpeg").url).content_type == "image/jpeg"


@bug(
    "N8",
    symptom="a caller asked for tiff, and got a picture that the browser does not show",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_a_format_that_is_not_listed_is_written(fal_cdn):
    """Formats that Image does not list are taken without complaint, and so are misspelt ones.

    Production: callers who may choose the format get TIFF, BMP or image/nonsense.
    Expected: an error that says which formats there are.
    Happens: the list is a type hint, which nobody checks: from_pil writes what Pillow can write,
        from_bytes takes any word.
    Avoid: ImageFormat, the list, as the type of the input's field: then it is a 422. It lists
        jpg, too, which from_pil does not know.
    """
    image = Image.from_pil(PILImage.new("RGB", (8, 8), "red"), format="tiff")
    assert fal_cdn.info(image.url).content_type == "image/tiff"
    image = Image.from_bytes(b"no picture at all", format="nonsense")
    assert fal_cdn.info(image.url).content_type == "image/nonsense"

    for format in ("tiff", "nonsense"):
        with pytest.raises(ValidationError, match="Input should be 'png', 'jpeg', 'jpg', 'webp'"):
            TypeAdapter(ImageFormat).validate_python(format)


@bug(
    "N5",
    symptom="large panoramas fail: Input should be less than or equal to 14142",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_a_wide_picture_is_refused(fal_cdn):
    """from_pil refuses pictures that are wider or higher than 14142 pixels.

    Production: the request fails with 500 once the picture is there, at the end of all the work.
    Expected: no limit; the documentation names none.
    Happens: the size goes through ImageSize, the type of what callers may ask for, before the
        picture is encoded. Nothing is uploaded.
    Avoid: encode it yourself: from_bytes has no limit, and the size can be set afterwards.
    """
    panorama = PILImage.new("RGB", (14143, 1))
    with pytest.raises(ValidationError) as refused:
        Image.from_pil(panorama)
    (error,) = refused.value.errors()
    assert error["loc"] == ("width",)
    assert error["msg"] == "Input should be less than or equal to 14142"
    assert fal_cdn.files == []

    encoded = io.BytesIO()
    panorama.save(encoded, "PNG", compress_level=1)
    image = Image.from_bytes(encoded.getvalue(), "png")
    image.width, image.height = panorama.size
    assert fal_cdn.image(image.url).size == (image.width, image.height) == (14143, 1)


@bug(
    "F11",
    symptom="I replaced the image at the URL, and the app still uses the old one",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_an_image_is_read_once_for_all(fal_origin):
    """read_image_from_url reads each URL once in the life of a runner.

    Production: a webcam's picture, or a mask that was replaced, is that of hours ago.
    Expected: what is at the URL now.
    Happens: the last 64 images stay in memory, and the URL is not asked again.
    Avoid: Image(url=...).to_pil(), or a version in the URL.
    """
    file = fal_origin.serve(PHOTO, picture("red"))
    read_image_from_url(PHOTO)
    file.update(picture("blue"))
    assert read_image_from_url(PHOTO).getpixel((0, 0)) == (255, 0, 0)

    assert Image(url=PHOTO).to_pil().getpixel((0, 0)) == (0, 0, 255)


@bug(
    "F11",
    symptom="the watermark is on images of customers who have paid",
    topic=IMAGES,
    seen=("1.75.5", "1.83.0"),
)
def test_an_image_is_shared_by_all_callers(fal_origin):
    """What one caller draws on an image is there for the next one that reads the URL.

    Production: traces of one request are in the result of another.
    Expected: an image of one's own.
    Happens: all get the same object.
    Avoid: copy() before drawing.
    """
    fal_origin.serve(PHOTO, picture("red"))
    copy = read_image_from_url(PHOTO).copy()
    copy.paste("white", (0, 0, 64, 64))
    assert read_image_from_url(PHOTO).getpixel((0, 0)) == (255, 0, 0)

    image = read_image_from_url(PHOTO)
    image.paste("white", (0, 0, 64, 64))
    assert read_image_from_url(PHOTO).getpixel((0, 0)) == (255, 255, 255)
