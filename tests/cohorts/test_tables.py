import numpy as np
import pytest

from spectral_mlops.cohorts.columns import ALIASES, concept_of
from spectral_mlops.cohorts.labels import choose_positive
from spectral_mlops.cohorts.tables import read_people
from spectral_mlops.errors import InputError, UnknownNameError


def test_columns_are_found_by_alias_and_echoed(write):
    path = write(
        "pheno.csv",
        "ID,Current Age,Gender,Subject Type,FD,SITE_ID,IQ\n"
        "0040000,20,M,Control,0.1,35343.0,100\n"
        "0040001,n/a,F,Patient,0.2,35426.0,n/a\n",
    )
    people = read_people(path)
    assert list(people.frame.index) == ["0040000", "0040001"]
    assert list(people.frame.columns) == ["age", "sex", "group", "fd", "site", "IQ"]
    assert people.frame["age"].iloc[0] == 20.0
    assert np.isnan(people.frame["age"].iloc[1])
    assert people.frame["site"].tolist() == ["35343.0", "35426.0"]
    assert people.frame["IQ"].isna().tolist() == [False, True]
    assert people.target == "group"
    echoed = people.notes[0]
    for part in ("id = 'ID'", "age = 'Current Age'", "group = 'Subject Type'"):
        assert part in echoed
    assert people.notes[1] == "group: 1 Control, 1 Patient"


@pytest.mark.parametrize(
    ("concept", "name"),
    [
        *(("group", name) for name in ("Dx_group", "DX GROUP", "CLASS", "isControl")),
        *(("id", name) for name in ("participant-id", "SUB_ID", "Id", "")),
        *(("fd", name) for name in ("FD Scrubbed", "func_mean_fd")),
        *(("age", name) for name in ("AGE AT SCAN", "current_age")),
        (None, "handedness"),
    ],
)
def test_aliases_ignore_case_blanks_and_underscores(concept, name):
    assert concept_of(name) == concept


def test_no_alias_means_two_things():
    for concept, aliases in ALIASES.items():
        assert {concept_of(alias) for alias in aliases} == {concept}


def test_named_columns_win(write):
    path = write("a.csv", "ID,code,Class,dx\n1,x1,0,HC\n2,x2,1,SZ\n")
    people = read_people(path, id_column="code", label_column="dx")
    assert list(people.frame.index) == ["x1", "x2"]
    assert people.frame["group"].tolist() == ["HC", "SZ"]
    assert people.frame["Class"].tolist() == ["0", "1"]


def test_a_label_column_of_any_name_is_filed_as_group(write):
    path = write("a.csv", "ID,group,responder\n1,p,yes\n2,c,no\n")
    people = read_people(path, label_column="responder")
    assert people.frame["group"].tolist() == ["yes", "no"]
    assert people.frame["group (own)"].tolist() == ["p", "c"]


def test_a_demographic_target_keeps_the_groups_beside_it(write):
    path = write("a.csv", "ID,dx,gender\n1,HC,F\n2,SZ,M\n")
    people = read_people(path, label_column="gender")
    assert people.target == "sex"
    assert people.frame["group"].tolist() == ["HC", "SZ"]


def test_text_among_ages_keeps_the_column_text(write):
    path = write("a.csv", "ID,dx,age\n1,HC,89+\n2,SZ,20\n")
    assert read_people(path).frame["age"].tolist() == ["89+", "20"]


def test_two_motion_columns_keep_their_names(write):
    path = write("a.csv", "ID,dx,mean_fd,func_mean_fd\n1,HC,.1,.2\n2,SZ,.3,.4\n")
    people = read_people(path)
    assert {"mean_fd", "func_mean_fd"} <= set(people.frame.columns)
    assert "fd: mean_fd, func_mean_fd keep their own names" in people.notes


def test_label_names(write):
    path = write("a.csv", "ID,Class\n1,0\n2,1\n3,1\n")
    people = read_people(path, label_names={"0": "control", "1": "patient"})
    assert people.frame["group"].tolist() == ["control", "patient", "patient"]
    with pytest.raises(InputError, match=r"no name for '1'.*labels .* are 0, 1"):
        read_people(path, label_names={"0": "control"})
    with pytest.raises(InputError, match=r"unknown '2'"):
        read_people(path, label_names={"0": "a", "1": "b", "2": "c"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Class\n1,0\n1,1\n", r"id 1 stands on lines 2 and 3.*contradict .*Class=0"),
        ("ID,Class\n1,0\n2,1\n1,0\n", "lines 2 and 4, and the two rows are identical"),
        ("ID,Class,x\n1,0,5\n1,0,6\n", "differ in other columns"),
        ("ID,Class\n1,0\n02,n/a\n3,NaN\n4,1\n", r"02 \(line 3\), 3 \(line 4\); label"),
        ("ID,Class\nn/a,0\n2,1\n", "line 2: the id in column 'ID' is missing"),
        ("ID,Class\n1,0\n2,0\n", "everyone has Class=0; .* at least two labels"),
        ("ID,Class,dx\n1,0,a\n", "'Class' and 'dx' could each be .*label_column="),
        ("ID,SUB_ID,dx\n1,0,a\n", "'ID' and 'SUB_ID' could each be .*id_column="),
        ("ID,dx\n1,SZ\n2,Control\n3,control\n", "'Control' and 'control' of 'dx' are"),
        ("ID,dx\n1,1\n2,2\n3,1.0\n", "'1' and '1.0' of 'dx' are .* label_names="),
    ],
)
def test_bad_tables_are_refused(write, text, message):
    with pytest.raises(InputError, match=message):
        read_people(write("a.csv", text))


def test_one_label_written_in_two_ways_is_named_or_told(write):
    path = write("a.csv", "ID,dx,sex,site\n1,HC,F,35343.0\n2,hc,f,35343\n3,SZ,M,A\n")
    names = {"HC": "control", "hc": "control", "SZ": "patient"}
    people = read_people(path, label_names=names)
    assert people.frame["group"].tolist() == ["control", "control", "patient"]
    assert people.notes[-2:] == (
        "sex: 'F' and 'f' may be one label written in two ways",
        "site: '35343' and '35343.0' may be one label written in two ways",
    )
    rows = [f"{k},{k}" for k in range(20, 31)]
    ages = write("b.csv", "\n".join(["ID,age", *rows, "99,20.0\n"]))
    people = read_people(ages, label_column="age")  # numbers, no groups
    assert len(people.frame) == 12
    assert "age: 12 numbers, 20 to 30" in people.notes


def test_absent_columns_are_named_with_the_nearest(write):
    path = write("a.csv", "ID,Class\n1,0\n2,1\n")
    with pytest.raises(UnknownNameError, match=r"'Klass'.*ID, Class.*mean 'Class'"):
        read_people(path, label_column="Klass")
    with pytest.raises(UnknownNameError, match=r"no column looks like the group"):
        read_people(write("b.csv", "ID,outcome\n1,0\n2,1\n"))


@pytest.mark.parametrize(
    ("labels", "column", "expected"),
    [
        (["0", "1", "0"], "Class", "1"),
        (["CONTROL", "SCHZ"], "diagnosis", "SCHZ"),
        (["HC", "Patient"], "dx", "Patient"),
    ],
)
def test_plain_positive_labels_are_recognised(labels, column, expected):
    assert choose_positive(labels, None, column, "a.csv")[0] == expected


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (["1", "2"], "DX_GROUP"),  # ABIDE: 1 is autism
        (["0", "1"], "isControl"),  # 1 is a control
        (["M", "F"], "sex"),
        (["HC", "SZ", "BP"], "dx"),
    ],
)
def test_doubtful_positive_labels_must_be_named(labels, column):
    with pytest.raises(InputError, match=rf"'{column}'.*say so with positive="):
        choose_positive(labels, None, column, "a.csv")
    assert choose_positive(labels, labels[1], column, "a.csv")[0] == labels[1]


def test_a_positive_that_is_no_label():
    with pytest.raises(InputError, match=r"positive='SZ'.*HC, Sz\."):
        choose_positive(["HC", "Sz"], "SZ", "dx", "a.csv")


def test_people_without_a_label_may_be_left_out(write):
    path = write("p.tsv", "ID\tCDR\nOAS1\t0\nOAS2\tn/a\nOAS3\t0.5\nOAS4\t\n")
    with pytest.raises(InputError, match=r"'CDR' is missing for OAS2 .*OAS4"):
        read_people(path, label_column="CDR")
    people = read_people(path, label_column="CDR", drop_unlabelled=True)
    assert list(people.frame.index) == ["OAS1", "OAS3"]
    assert "unlabelled: 2 people left out" in people.notes
    nobody = write("q.tsv", "ID\tCDR\nOAS1\tn/a\n")
    with pytest.raises(InputError, match=r"nobody has a label in column 'CDR'"):
        read_people(nobody, label_column="CDR", drop_unlabelled=True)


@pytest.mark.parametrize(
    ("concept", "names"),
    [
        ("id", "participant_id,ID,Id,SUB_ID,SUBID,subjectid,FILE_ID,,niftifile"),
        ("id", "filename,freesurferfile"),
        ("group", "group,diagnosis,dx,DX_GROUP,Dx_group,condit,Class,Cat,Subject Type"),
        ("group", "Subject_Type,isControl,sz"),
        ("age", "age,Age,Current Age,AGE_AT_SCAN"),
        ("sex", "sex,Sex,gender,Gender,SEX,Gen"),
        ("fd", "FD,FD Scrubbed,func_mean_fd,fd_mean,mean_fd"),
        ("site", "site,SITE,SITE_ID,ScannerSerialNumber"),
    ],
)
def test_names_seen_in_published_tables(concept, names):
    assert [concept_of(name) for name in names.split(",")] == [
        concept for _ in names.split(",")
    ]


def test_cobre_as_indi_published_it(write):
    """The id has no name, two columns could be the group, and some left the study."""
    path = write(
        "COBRE_phenotypic_data.csv",
        ",Current Age,Gender,Handedness,Subject Type,Diagnosis\n"
        "0040000,20,Female,Right,Patient,295.3\n"
        "0040001,27,Male,Right,Control,None\n"
        "0040002,Disenrolled,Disenrolled,Disenrolled,Disenrolled,Disenrolled\n",
    )
    with pytest.raises(InputError, match=r"'Subject Type' and 'Diagnosis' could each"):
        read_people(path)
    people = read_people(path, None, "Subject Type", None, ("Control", "Patient"))
    assert people.frame["group"].to_dict() == {
        "0040000": "Patient",
        "0040001": "Control",
    }
    assert people.frame["age"].tolist() == [20.0, 27.0]
    assert people.frame["sex"].tolist() == ["Female", "Male"]
