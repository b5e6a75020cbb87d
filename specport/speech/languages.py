"""The languages that Whisper knows: code and name, as in OpenAI's whisper/tokenizer.py."""

from __future__ import annotations

# A code and its name; `_` stands for a space.
_NAMES = """
    en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese
    tr=turkish pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi
    fi=finnish vi=vietnamese he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish
    hu=hungarian ta=tamil no=norwegian th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin
    mi=maori ml=malayalam cy=welsh sk=slovak te=telugu fa=persian lv=latvian bn=bengali sr=serbian
    az=azerbaijani sl=slovenian kn=kannada et=estonian mk=macedonian br=breton eu=basque is=icelandic
    hy=armenian ne=nepali mn=mongolian bs=bosnian kk=kazakh sq=albanian sw=swahili gl=galician
    mr=marathi pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba so=somali af=afrikaans oc=occitan
    ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic yi=yiddish lo=lao uz=uzbek
    fo=faroese ht=haitian_creole ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit lb=luxembourgish
    my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala ha=hausa
    ba=bashkir jw=javanese su=sundanese yue=cantonese
"""
# Further names.
_OTHERS = """
    burmese=my valencian=ca flemish=nl haitian=ht letzeburgesch=lb pushto=ps panjabi=pa moldavian=ro
    moldovan=ro sinhalese=si castilian=es mandarin=zh
"""


def _table(text: str) -> dict[str, str]:
    pairs = (entry.split("=") for entry in text.split())
    return {key.replace("_", " "): value.replace("_", " ") for key, value in pairs}


NAMES = _table(_NAMES)
CODES = {name: code for code, name in NAMES.items()} | _table(_OTHERS)


def code_of(language: str) -> str:
    """Return the code of a language that is given by code or by name; other text comes back in lower case."""
    given = language.strip().lower()
    return CODES.get(given, given)


def name_of(code: str) -> str:
    """Return the English name of a language in lower case, or the code where it has none here."""
    return NAMES.get(code, code)
