"""Words of English questions that carry no content of their own, and those that mean the same. Pure data.

What is not on a list here is content, in every language: it has to be on both sides. So a missing synonym costs a hit
and never causes a wrong one; a wrong synonym would cause wrong ones, and therefore only words that may replace each
other in a question without changing its answer are on a line together.
"""


def _each(words: str) -> list[str]:
    return words.split()


def words(line: str) -> frozenset[str]:
    """Each word of a line."""
    return frozenset(line.split())


ARTICLES = frozenset(("a", "an", "the"))
BE = frozenset(("is", "are", "am", "be", "been", "being"))
WAS = frozenset(("was", "were"))
QUESTIONS = frozenset(("what", "which", "who", "whom", "whose", "when", "where", "why", "how"))
DEGREES = words(
    "many much long old far big tall high deep wide fast quickly often large heavy hot cold soon late"
)
"""After "how" they are part of the question."""
GENERIC = frozenset(("i", "you", "we", "one", "someone", "people"))
"""In "how do I" and "how do you" they mean anybody."""

MODALS = {
    **dict.fromkeys(("do", "does"), ""),
    "did": "past",
    **dict.fromkeys(("will", "shall"), "future"),
    **dict.fromkeys(("can",), "can"),
    **dict.fromkeys(("could",), "could"),
    **dict.fromkeys(("should", "ought"), "should"),
    **dict.fromkeys(("must",), "must"),
    **dict.fromkeys(("may",), "may"),
    **dict.fromkeys(("might",), "might"),
    **dict.fromkeys(("would",), "would"),
}
"""Verbs that help others, and what they say of time or possibility."""

PREPOSITIONS = words(
    "in on at to from with without by for about over under above below between before after during through against "
    "into onto than as since until while if unless because although despite instead inside outside via per among "
    "across toward towards near off out up down like except within beyond behind beside along around"
)
"""What follows one of these may stand earlier or later in a sentence, but goes together with it."""

NEGATIONS = words(
    "not no never none nobody nothing nowhere neither nor without hardly barely scarcely non unless except against "
    "nicht kein keine nie ne pas jamais нет не non nunca sin ohne 不 没 無 沒"
)

FILLERS = words(
    "please kindly just really actually simply basically hi hello hey thanks thank okay ok um uh well"
)

REQUESTS = words(
    "tell explain show give help write list recommend suggest describe translate convert summarize summarise compose "
    "name define provide create find calculate compute"
)
"""After "can you" they ask for something to be done, not whether it can be done."""
ASKING = words("tell explain describe define list name give show provide calculate compute")
"""Said first, they ask what "what is" asks."""

NUMBERS = {
    word: number
    for number, word in enumerate(
        _each(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen"
        )
    )
} | {
    word: 10 * (number + 2)
    for number, word in enumerate(_each("twenty thirty forty fifty sixty seventy eighty ninety"))
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS = {
    word: number + 1
    for number, word in enumerate(
        _each("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth")
    )
}
SIGNS = {"%": "percent", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "°": "degree"}

HOMOGRAPHS = words(
    "polish turkey china march may august reading nice mobile job lima bath cork jersey swift rust java python go bill "
    "mark rose will rich frank grant hope"
)
"""A capital letter makes another word of them."""

KEEP_S = words(
    "news goods glasses customs arms means pants series species physics mathematics economics politics always sometimes "
    "perhaps besides yes this his its us as was is has does plus minus times versus across towards class gas bus "
    "lens pros cons terms damages spirits manners"
)
"""They end in s, and are no plurals; or are, of another meaning."""

CONTRACTIONS = {
    "can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not", "ain't": "is not",
    "what's": "what is", "who's": "who is", "where's": "where is", "when's": "when is", "how's": "how is",
    "why's": "why is", "that's": "that is", "it's": "it is", "there's": "there is", "here's": "here is",
    "he's": "he is", "she's": "she is", "let's": "let us", "i'm": "i am", "what're": "what are",
    "e-mail": "email", "wifi": "wi-fi", "gonna": "going to", "wanna": "want to", "gotta": "have to",
}  # fmt: skip

PHRASES = (
    ("united states of america", "usa"), ("united states", "usa"), ("the us", "usa"), ("united kingdom", "uk"),
    ("is it possible to", "can i"), ("would it be possible to", "can i"), ("in order to", "to"), ("prior to", "before"),
    ("going to", "future"), ("have to", "must"), ("has to", "must"), ("need to", "must"), ("needs to", "must"),
    ("able to", "possibly"), ("allowed to", "permittedly"),
    ("log in", "login"), ("log into", "login to"), ("log on", "login"), ("sign in", "login"), ("sign into", "login to"),
    ("log out", "logout"), ("log off", "logout"), ("sign out", "logout"), ("sign up", "signup"),
    ("set up", "setup"), ("turn on", "enable"), ("switch on", "enable"), ("turn off", "disable"),
    ("switch off", "disable"), ("get rid of", "remove"), ("stand for", "mean"), ("stands for", "mean"),
    ("as well as", "and"), ("in addition to", "and"), ("a lot of", "many"), ("lots of", "many"),
    ("best way to", "way to"), ("steps to", "way to"), ("procedure to", "way to"), ("steps for", "way for"),
    ("at present", "currently"), ("right now", "now"), ("at the moment", "now"), ("these days", "now"),
    ("what time", "when"), ("what date", "when"), ("what year", "which year"), ("how come", "why"),
    ("what is the reason", "why is"), ("for what reason", "why"), ("what are some", "what are"), ("which are some", "what are"), ("in the world", "of the world"),
    ("in the universe", "of the universe"),
    ("are there", "are"), ("is there", "is there"), ("more than", "over"), ("less than", "under"),
    ("fewer than", "under"), ("kids", "children"), ("km / h", "kmh"),
)  # fmt: skip
"""Several words that are one, the longer ones of the same beginning first."""

_SAME = """
big large
purchase buy
film movie
every all each
calculate compute
begin start commence
repair fix
obtain get receive
build make create
quit exit
depart leave
delete remove erase
present gift
kid child children
mom mother mum mama
dad father papa
company business firm
shop store
phone telephone
plane airplane aeroplane aircraft
car automobile
photo picture photograph
doctor physician
closest nearest
fast quick quickly rapidly
biggest largest
happen occur
sign symptom
use utilize utilise
reply respond answer
advantage benefit
recommend suggest
compose write
summary summarize summarise
kilometer kilometre km
meter metre
centimeter centimetre cm
millimeter millimetre mm
kilogram kilo kg
gram gramme g
milligram mg
liter litre l
milliliter millilitre ml
pound lb lbs
ounce oz
foot feet
inch inches
hour hr hrs
minute min mins
second sec secs
percent pct
dollar usd
euro eur
celsius centigrade
mile mi
gigabyte gb
megabyte mb
kilobyte kb
terabyte tb
tv television
internet web
email mail
color colour
favorite favourite
center centre
behavior behaviour
organize organise
analyze analyse
difference distinction
currently now
find locate
deliver ship
usa us america
ml milliliter
study studying
jan january
feb february
mar march
apr april
jun june
jul july
aug august
sep sept september
oct october
nov november
dec december
mon monday
tue tues tuesday
wed wednesday
thu thurs thursday
fri friday
sat saturday
sun sunday
men man
women woman
people person
mice mouse
teeth tooth
geese goose
lives life
wives wife
knives knife
leaves leaf
quickest fastest
smallest littlest
"""


def _groups() -> dict[str, str]:
    same: dict[str, str] = {}
    for line in _SAME.split("\n"):
        words = line.split()
        head = next((same[word] for word in words if word in same), words[0] if words else "")
        for word in words:
            same.setdefault(word, head)
    # Spelt alike, they are other words too, and stand for themselves.
    for word in (
        "min",
        "sun",
        "sat",
        "mar",
        "may",
        "mail",
        "second",
        "leaves",
        "lives",
        "present",
        "us",
        "study",
    ):
        same.pop(word, None)
    return same


SAME = _groups()
"""Word -> the one that stands for all that mean the same."""
