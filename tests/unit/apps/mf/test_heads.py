"""Which columns of a file of ratings are user, item and rating: by header, by --columns, or with a doubt."""

import pytest

from lapse.apps.mf import options
from lapse.apps.mf.data import RatingsError, Source, read_format, read_share


def triples(text, chosen=None, count=1):
    source = Source("ratings", text.encode())
    form = read_format(source, chosen)
    found = []
    for part in range(count):
        share = read_share(source, part, count, form)
        found += [
            (share.row_ids[r], share.column_ids[c], v)
            for r, c, v in zip(share.rows, share.columns, share.values.tolist())
        ]
    return found, form


EXPECTED = [("7", "40", 3.5), ("8", "41", 1.0)]


@pytest.mark.parametrize(
    "text",
    [
        "userId,movieId,rating,timestamp\n7,40,3.5,964982703\n8,41,1,964982703\n",
        ",userId,movieId,rating\n0,7,40,3.5\n1,8,41,1\n",  # pandas, with its index
        "Unnamed: 0,user,item,rating\n0,7,40,3.5\n1,8,41,1\n",
        "rating,user,item\n3.5,7,40\n1,8,41\n",
        "userId,timestamp,movieId,rating\n7,964982703,40,3.5\n8,964982703,41,1\n",
        "user_id:token\titem_id:token\trating:float\n7\t40\t3.5\n8\t41\t1\n",  # RecBole
        '"user" "item" "rating"\n"1" 7 40 3.5\n"2" 8 41 1\n',  # R's write.table
        '"","user","item","rating"\n"1",7,40,3.5\n"2",8,41,1\n',  # R's write.csv
        '"","a","b","c"\n"1",7,40,3.5\n"2",8,41,1\n',  # names that say nothing, and an index
        "user,item,rating\n1,7,40,3.5\n2,8,41,1\n",  # R, without the name of the first column
        "reviewerID,overall,asin\n7,3.5,40\n8,1,41\n",
        "module,identifier,size\n7,40,3.5\n8,41,1\n",
        "user_id|artist|plays\n7|40|3.5\n8|41|1\n",
        "User-ID;ISBN;Book-Rating\r\n7;40;3.5\r\n8;41;1\r\n",
        "7::40::3.5::964982703\n8::41::1::964982703\n",
        "rating,7,8,1,user,item,2019\n3.5,0,0,0,7,40,0\n1,0,0,0,8,41,0\n",
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_headers(text, count):
    found, form = triples(text, count=count)
    assert found == EXPECTED
    assert not form.doubts
    if form.columns != (0, 1, 2):
        assert form.note


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("a,b,c,d\n3.5,7,0,40\n1,8,0,41\n", "b,d,a"),
        ("a,b,c,d\n3.5,7,0,40\n1,8,0,41\n", "2, 4, 1"),
        ("3.5,7,0,40\n1,8,0,41\n", "2,4,1"),
        ("Rating,User,X,Item\n3.5,7,0,40\n1,8,0,41\n", "user,ITEM,rating"),
        ("1,2,3\n3.5,7,40\n1,8,41\n", "2,3,rating".replace("rating", "1")),
        ('"a" "b" "c"\n"x" 7 40 3.5\n"y" 8 41 1\n', "a,b,c"),
        ('"a" "b" "c"\n"x" 7 40 3.5\n"y" 8 41 1\n', "2,3,4"),
    ],
)
def test_columns_are_chosen(text, chosen):
    found, _ = triples(text, chosen)
    assert [each for each in found if each not in EXPECTED] == ([("2", "3", 1.0)] if text.startswith("1,2,3") else [])
    assert found[-2:] == EXPECTED


@pytest.mark.parametrize(
    "text, chosen, message",
    [
        (
            "user,thing,when,stars\n7,40,9,3.5\n",
            None,
            "1: cannot tell which of the columns 'user', 'thing', 'when', 'stars'",
        ),
        ("user,user_id,item,rating\n7,7,40,3\n", None, "1: cannot tell"),
        ("user,item,rating\n7,40,3.5\n", "user,item,score", "1: --columns: no column 'score': the header names 'user'"),
        ("7,40,3.5\n", "user,item,rating", "1: --columns: no column 'user'"),
        (
            "7,40,3.5\n",
            "1,2,4",
            "1: --columns: no column '4': there is no header, and columns have the numbers from 1 to 3",
        ),
        ("user,item,rating\n7,40,3.5\n", "user,USER,rating", "names a column twice"),
        ("7,40,0,3.5\n8,41,0\n", "1,2,4", "2: '8,41,0' has 3 fields"),
        ("7,40,x\n8,41,3\n", "1,2,3", "1: '7,40,x' has the rating 'x'"),
        ("userId,movieId,tag,timestamp\n7,40,funny,9\n", None, "2: '7,40,funny,9' has the rating 'funny'"),
        ('7,40,3\n7,a\rb,"3"\n', None, "2: '7,a\\rb,\"3\"' is not a line of CSV"),
        ("%%MatrixMarket matrix coordinate real general\n1 1 1\n1 1 1\n", "1,2,3", "1: --columns is for text"),
        ('{"user": 1, "item": 2, "rating": 3}\n', None, "looks like JSON"),
        ("1;2;3,5\n", None, "1: '1;2;3,5' has the rating '3,5', which is not a number"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_the_line(text, chosen, message):
    with pytest.raises(RatingsError) as caught:
        triples(text, chosen)
    assert message in str(caught.value) and str(caught.value).startswith("ratings:")


@pytest.mark.parametrize(
    "text, doubt",
    [
        ("".join(f"{i},{i % 5},{i % 7},{i % 4}\n" for i in range(20)), "first column numbers the lines"),
        ("".join(f"{i % 3},{i % 7},{i % 4},0,0\n" for i in range(20)), "columns 1, 2 and 3 of 5 are taken"),
        ("".join(f"{i % 3},{i % 7},{964982703 + i}\n" for i in range(20)), "look like times"),
        ("user,item,value\n" + "".join(f"{i % 3},{i % 7},{964982703 + i}\n" for i in range(20)), "look like times"),
        ("".join(f"{i % 5},{i % 7},{i * 37 % 101}\n" for i in range(99)), "different integers"),
        ("0,1,2\n" + "".join(f"{i % 5},{i % 7},{i % 3}\n" for i in range(20)), "the first line is 0, 1, 2"),
        ("a,b,c,d\n7,40,3.5,x\n", "taken are user: 'a' (column 1), item: 'b' (column 2), rating: 'c' (column 3)"),
    ],
)
def test_what_looks_wrong_is_said(text, doubt):
    _, form = triples(text)
    assert len(form.doubts) == 1 and doubt in form.doubts[0], form.doubts


def test_names_that_differ_by_spaces_are_one_and_said():
    for text in ("a,x,1\n a,x,2\n", " a,x,1\na,x,2\n", " a,x,1\na ,x,2\n"):
        share = read_share(Source("r", text.encode()))
        assert share.row_ids == ["a"] and share.rows.tolist() == [0, 0] and "'a'" in share.doubt
    assert not read_share(Source("r", b"a, x,1\nb, x,2\n")).doubt


def test_columns_of_the_command_line(capsys):
    parsed = options.parse(["--ratings", "f", "--columns", "userId, movieId,rating"])
    assert parsed.columns == "userId, movieId,rating"
    made = options.parse(["--columns", "70"])
    assert made.num_columns == 70 and made.columns is None and "num_columns" in made.given
    assert options.parse([]).num_columns == 500
    for words in (
        ["--columns", "a,b,c"],
        ["--ratings", "f", "--columns", "7"],
        ["--columns", "a,b"],
        ["--columns", "a,a,b"],
    ):
        with pytest.raises(SystemExit):
            options.parse(words)
        assert "--columns" in capsys.readouterr().err
