"""Texts for the Harmony benchmarks: English and code from Python's own standard library, and sentences of many
languages.

Nothing repeats word for word: each text is another slice, so an encoder's cache helps no more than it would in use.
"""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path
from random import Random

SENTENCES = """\
El tren llega a la estación cuando la lluvia empieza a caer sobre los tejados viejos.
Nous avons marché jusqu'à la rivière, où les enfants lançaient des pierres plates sur l'eau.
Der Bäcker öffnet früh am Morgen, und der Geruch von frischem Brot zieht durch die Straße.
Il mercato era pieno di arance, di voci e di persone che non avevano nessuna fretta.
A biblioteca fecha às seis, mas o jardim continua aberto até o anoitecer.
De fietsen staan in rijen langs de gracht en niemand weet meer welke van wie is.
Pociąg spóźnił się o godzinę, więc wypiliśmy jeszcze jedną herbatę na dworcu.
Vlak projíždí údolím, kde se v zimě dlouho drží mlha a sníh.
Sjön låg alldeles stilla och båtarna speglade sig i det mörka vattnet.
Linnut palaavat keväällä samoille rannoille, joilta ne syksyllä lähtivät.
A régi híd fölött lassan kigyulladnak a lámpák, amikor leszáll az este.
Çocuklar okuldan sonra parkta top oynuyor, anneleri de bankta sohbet ediyordu.
Учёные измерили температуру воды и записали результаты в большую тетрадь.
Старий годинник на вежі відстає на сім хвилин, але всі до цього звикли.
Το καράβι έφυγε αργά το βράδυ και τα φώτα του λιμανιού χάθηκαν στον ορίζοντα.
הספר מונח על השולחן ליד החלון, והקפה כבר התקרר מזמן.
وصلت الرسالة بعد ثلاثة أيام، وكان فيها خبر سعيد عن العائلة في المدينة البعيدة.
مسافران کنار آتش نشستند و تا نیمه شب داستان‌های قدیمی گفتند.
गाँव के बच्चे नदी के किनारे पतंग उड़ाते हैं और शाम को घर लौटते हैं।
নৌকাটি ধীরে ধীরে নদীর ওপারে গেল, আর আকাশে মেঘ জমতে লাগল।
மழை பெய்த பிறகு தோட்டத்தில் பூக்கள் புதிதாக மலர்ந்தன.
నగరంలో కొత్త గ్రంథాలయం తెరిచారు, అక్కడ అందరూ చదువుకోవచ్చు.
รถไฟขบวนสุดท้ายออกจากสถานีตอนเที่ยงคืน และเมืองทั้งเมืองก็เงียบลง
Buổi sáng ở chợ nổi, thuyền chở đầy trái cây và tiếng cười nói.
Nelayan itu pulang sebelum fajar dengan jala yang penuh ikan.
Watoto walicheza chini ya mti mkubwa huku bibi akisimulia hadithi.
駅前の小さな喫茶店では、毎朝同じ客が同じ席に座って新聞を読んでいる。
雨上がりの庭に、子どもたちの笑い声と鳥の声が響いていた。
老城的街道很窄，傍晚时分到处都是饭菜的香味和自行车的铃声。
科学家们发现，这种植物只在海拔三千米以上的山谷里开花。
할머니는 마당에서 고추를 말리시고, 고양이는 햇볕 아래에서 낮잠을 잔다.
გაზაფხულზე მთებში თოვლი დნება და მდინარეები ადიდდება.
Գարնանը ծառերը ծաղկում են, և քաղաքը լցվում է թռչունների ձայնով።
Vaikai rado seną žemėlapį palėpėje ir visą vasarą ieškojo lobio.
Þegar veturinn kom lögðust skipin við bryggju og enginn fór út á sjó.
Cyrhaeddodd y trên yn hwyr eto, ond roedd pawb yn canu ar y platfform.
Traversăm podul în fiecare dimineață și ne uităm la pescarii de pe mal.
Децата нарисуваха слънце на стената и учителката не се разсърди. 🌞📚✨
""".splitlines()

KINDS = ("english", "code", "multilingual")


def texts(kind: str, count: int, characters: int, seed: int = 0) -> list[str]:
    """`count` texts of one of KINDS, of `characters` on average (a quarter to seven quarters of it)."""
    rng = Random(seed)
    if kind == "multilingual":
        return [_sentences(rng, rng.randrange(characters // 4, characters * 7 // 4)) for _ in range(count)]
    corpus = _standard_library()[kind]
    sizes = [rng.randrange(characters // 4, characters * 7 // 4) for _ in range(count)]
    starts = [rng.randrange(len(corpus) - size) for size in sizes]
    return [corpus[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _sentences(rng: Random, characters: int) -> str:
    """Words of several sentences, each sentence's own words in a new order, so that no two texts are alike."""
    out: list[str] = []
    while sum(map(len, out)) < characters:
        words = rng.choice(SENTENCES).split()
        rng.shuffle(words)
        out.append(" ".join(words) + rng.choice([". ", "\n", " "]))
    return "".join(out)[:characters]


@cache
def _standard_library() -> dict[str, str]:
    """Docstrings as English, whole files as code."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sources = [file.read_text("utf-8", "replace") for file in files]
    return {"english": "\n\n".join(map(_docstrings, sources)), "code": "\n".join(sources)}


def _docstrings(source: str) -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return "\n\n".join([" ".join(text.split()) for text in found if text])
