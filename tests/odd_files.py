"""A folder of odd files: what users give to the applications by mistake, and what they have every right to give."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile


def zipped(*members):
    """A zip archive of pairs of name and content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        about = tarfile.TarInfo("text.txt")
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


def encrypted_zip(content):
    """As a program that encrypts would flag it."""
    data = bytearray(zipped(("text.txt", content)))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


#: How a text may be stored, by name: all of these are read as the text itself.
READABLE = {
    "plain": lambda text: text,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda text: lzma.compress(text, lzma.FORMAT_ALONE),
    "zip": lambda text: zipped(("ratings/", b""), ("ratings/text.txt", text), ("__MACOSX/._text.txt", b"\0\5")),
    "windows": lambda text: text.replace(b"\n", b"\r\n"),
    "old mac": lambda text: text.replace(b"\n", b"\r"),
    "utf-8 with a mark": lambda text: b"\xef\xbb\xbf" + text,
    "utf-16": lambda text: text.decode().encode("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"),
    "utf-32": lambda text: text.decode().encode("utf-32"),
    "utf-16 in bzip2": lambda text: bz2.compress(text.decode().encode("utf-16")),
    "old mac in zip": lambda text: zipped(("t", text.replace(b"\n", b"\r"))),
    "two gzip members": lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:]),
}

#: What is refused: how it is made of a text, and words of the message.
REFUSED = {
    "zstd": (lambda text: b"\x28\xb5\x2f\xfd\x04\x58" + text, ("zstd", "zstd -d")),
    "7z": (lambda text: b"7z\xbc\xaf\x27\x1c\0\4" + text, ("7z", "7z x")),
    "rar": (lambda text: b"Rar!\x1a\x07\x01\0" + text, ("rar", "unrar")),
    "lz4": (lambda text: b"\x04\x22\x4d\x18" + text, ("lz4", "lz4 -d")),
    "compress": (lambda text: b"\x1f\x9d\x90" + text, ("compress", "gzip -d")),
    "zip of two": (lambda text: zipped(("a.txt", text), ("b.txt", text)), ("2 files (a.txt, b.txt)", "unzip")),
    "zip of none": (lambda text: zipped(), ("0 files", "unzip")),
    "encrypted zip": (encrypted_zip, ("encrypted", "unzip")),
    "tar": (tarred, ("tar archive", "tar -xf")),
    "tar.gz": (lambda text: gzip.compress(tarred(text)), ("tar archive inside gzip", "tar -xf")),
    "gzip in gzip": (lambda text: gzip.compress(gzip.compress(text)), ("compressed twice", "unpack")),
    "zstd in zip": (lambda text: zipped(("a", b"\x28\xb5\x2f\xfd" + text)), ("zstd file inside zip", "unpack")),
    "utf-16 without a mark": (
        lambda text: text.decode().encode("utf-16-le"),
        ("UTF-16LE without", "iconv -f"),
    ),
    "utf-16-be without a mark": (lambda text: text.decode().encode("utf-16-be"), ("UTF-16BE without", "iconv")),
    "odd utf-16": (lambda text: text.decode().encode("utf-16") + b"x", ("not UTF-16", "Convert it to UTF-8")),
    "zero bytes": (lambda text: text + b"\0" + text, ("no text: byte", "tr -d")),
    "pickle": (lambda text: pickle.dumps([text, 1.5, 300]), ("no text", "another file")),
    "parquet": (lambda text: b"PAR1\x15\x04" + text, ("Parquet", "export it as text")),
    "numpy": (lambda text: b"\x93NUMPY\x01\0" + text, ("NumPy", "export")),
    "hdf5": (lambda text: b"\x89HDF\r\n\x1a\n" + text, ("HDF5", "export")),
    "sqlite": (lambda text: b"SQLite format 3\0" + text, ("SQLite", "export")),
    "xls": (lambda text: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + text, ("Office", "export")),
    "xlsx": (lambda text: zipped(("[Content_Types].xml", b"<>"), ("xl/sheet1.xml", text)), ("2 files", "unzip")),
    "pdf": (lambda text: b"%PDF-1.7\n" + text, ("PDF", "export")),
    "git lfs": (
        lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        ("Git LFS", "git lfs pull"),
    ),
}

PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda text: zipped(("t", text)),
}
#: Compressed files that end too early or are damaged in the middle.
DAMAGED = {
    f"{name}, {what}": (lambda text, pack=pack, spoil=spoil: spoil(pack(text)))
    for name, pack in PACKERS.items()
    for what, spoil in (
        ("cut", lambda data: data[: len(data) * 2 // 3]),
        ("bits", lambda data: data[:40] + bytes(byte ^ 0x55 for byte in data[40:60]) + data[60:]),
    )
}
