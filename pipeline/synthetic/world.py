"""World: users, ads and places with known tastes, from which logs are drawn.

Everything a row's click probability depends on is here or in the row; ``world_drift.py`` changes it from day to day.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.hashing import mixed

FloatArray = NDArray[np.float64]
Ints = NDArray[np.int64]
RawColumns = dict[str, NDArray[Any]]
"""Column -> (n,) values of one chunk of rows; in object arrays None is a missing value."""

SECONDS_PER_DAY = 86_400
FIRST_TIMESTAMP = 1_704_067_200
"""2024-01-01 00:00 UTC, a Monday."""

NUM_USERS, NUM_PROFILES = 4_000_000, 200_000
"""Users are many more than profiles: most of them show up once or never, and many share all their properties."""
NUM_ADS, NUM_CAMPAIGNS, NUM_ADVERTISERS, NUM_SITES, NUM_APPS = 1_500, 150, 40, 300, 100
NUM_CITIES, NUM_DEVICE_MODELS, NUM_INTERESTS, MAX_INTERESTS = 100, 80, 24, 5

CATEGORIES = tuple(
    ["autos", "beauty", "books", "fashion", "finance", "food", "games", "home", "media", "sports", "tech", "travel"]
)
SITE_CATEGORIES = tuple(
    ["blog", "cooking", "forum", "games", "mail", "music", "news", "search", "shop", "social", "sports", "video"]
)
CREATIVE_TYPES = ("banner", "native", "playable", "text", "video")
SLOT_SIZES = ("300x250", "300x600", "320x50", "320x480", "728x90", "970x250")
DEVICE_TYPES = ("desktop", "phone", "tablet", "tv")
SYSTEMS = ("android", "ios", "linux", "macos", "tvos", "windows")
BROWSERS = ("chrome", "edge", "firefox", "opera", "safari")
CONNECTIONS = ("3g", "4g", "5g", "wifi")
COUNTRIES = (
    "ar", "at", "au", "be", "br", "ca", "ch", "cn", "de", "dk", "es", "fi", "fr", "gb", "gr",
    "id", "ie", "in", "it", "jp", "kr", "mx", "nl", "no", "pl", "pt", "se", "tr", "us", "za",
)  # fmt: skip
GENDERS = ("f", "m")
GOLDEN_RATIO = 0.6180339887498949
"""Golden ratio: the fractional parts of its multiples are spread evenly."""
NUM_POSITIONS, NUM_DAYPARTS, NUM_AGE_GROUPS = 6, 4, 5
AGE_LIMITS = (25, 35, 45, 60)
MOOD_SECONDS = 3 * SECONDS_PER_DAY
"""Length of a mood: what a user is after for a while, which nothing of him tells but his latest clicks."""
MOOD_STRENGTH = 1.5


class World:
    """World: users, ads, places and tastes, drawn once from the seed, then only looked up.

    Attributes:
        renewals: how often on average the place of a user or of an ad has been taken by a new one.
    """

    def __init__(self, seed: int, click_rate: float) -> None:
        rng = np.random.default_rng([seed, 0])
        self._draw_users(rng)
        self._draw_ads(rng)
        self._draw_places(rng)
        self._draw_effects(rng)
        self.renewals = 0.0
        self.mood_seed = seed
        self.bias = 0.0
        self.bias = self._bias_for(click_rate, np.random.default_rng([seed, 1]))

    def _draw_users(self, rng: np.random.Generator) -> None:
        self.user_cdf = _cdf(_weights(NUM_USERS, 1.25, offset=10))
        self.city_country = rng.choice(len(COUNTRIES), NUM_CITIES, p=_weights(len(COUNTRIES), 0.7))
        self.profile_city = rng.choice(NUM_CITIES, NUM_PROFILES, p=_weights(NUM_CITIES, 0.8))
        self.profile_gender = rng.integers(0, len(GENDERS), NUM_PROFILES)
        self.profile_age = np.clip(rng.gamma(6.0, 6.5, NUM_PROFILES).astype(np.int64), 14, 90)
        self.profile_is_known = rng.random((NUM_PROFILES, 2)) >= (0.1, 0.2)  # known gender, known age
        # Distinct interests, from the user's favourites down; -1 beyond the user's number of them (0 to MAX_INTERESTS).
        popularity = np.log(_weights(NUM_INTERESTS, 0.5))
        order = np.argsort(-(popularity + rng.gumbel(size=(NUM_PROFILES, NUM_INTERESTS))), axis=1)[:, :MAX_INTERESTS]
        number = rng.binomial(MAX_INTERESTS, 0.5, NUM_PROFILES)
        self.profile_interests = np.where(np.arange(MAX_INTERESTS) < number[:, None], order, -1)
        self.model_type = rng.choice(len(DEVICE_TYPES), NUM_DEVICE_MODELS, p=(0.3, 0.5, 0.15, 0.05))
        systems_of_type = np.array([[2, 3, 5, 5], [0, 0, 1, 1], [0, 1, 1, 5], [0, 0, 4, 4]])
        self.model_system = systems_of_type[self.model_type, rng.integers(0, 4, NUM_DEVICE_MODELS)]
        self.profile_model = rng.choice(NUM_DEVICE_MODELS, NUM_PROFILES, p=_weights(NUM_DEVICE_MODELS, 0.8))
        self.profile_past_clicks = np.minimum(rng.pareto(1.3, NUM_PROFILES) * 4, 5_000).astype(np.int64)

    def _draw_ads(self, rng: np.random.Generator) -> None:
        self.ad_cdf = _cdf(_weights(NUM_ADS, 0.9))
        self.ad_campaign = rng.integers(0, NUM_CAMPAIGNS, NUM_ADS)
        self.campaign_advertiser = rng.integers(0, NUM_ADVERTISERS, NUM_CAMPAIGNS)
        self.advertiser_category = rng.integers(0, len(CATEGORIES), NUM_ADVERTISERS)
        self.ad_creative = rng.integers(0, len(CREATIVE_TYPES), NUM_ADS)
        self.ad_price = np.round(np.exp(rng.normal(3.0, 1.0, NUM_ADS)), 2)

    def _draw_places(self, rng: np.random.Generator) -> None:
        self.num_places = NUM_SITES + NUM_APPS  # sites first, then apps
        self.place_cdf = _cdf(_weights(self.num_places, 0.9))
        self.place_of_rank = rng.permutation(self.num_places)
        self.place_category = rng.integers(0, len(SITE_CATEGORIES), self.num_places)

    def _draw_effects(self, rng: np.random.Generator) -> None:
        """Effects on the logit: half of it pairwise, which a linear model cannot follow."""
        categories, places, creatives = len(CATEGORIES), len(SITE_CATEGORIES), len(CREATIVE_TYPES)
        # Tastes and appeals are arrows in one plane; their dot product is the low-rank user x item interaction. Arrows
        # of one kind point all around the circle, so none of them tells anything without the other side.
        self.category_appeal = _arrows(rng, categories)
        self.interest_taste = _arrows(rng, NUM_INTERESTS) * 2.0
        self.place_taste = _arrows(rng, places) * 1.0
        self.age_taste = _arrows(rng, NUM_AGE_GROUPS) * 0.6
        self.gender_taste = _arrows(rng, len(GENDERS)) * 0.3
        self.device_creative = np.outer(_levels(rng, len(DEVICE_TYPES)), _levels(rng, creatives)) * 0.6
        self.daypart_place = np.outer(_levels(rng, NUM_DAYPARTS), _levels(rng, places)) * 0.3
        self.category_effect = _levels(rng, categories) * 0.3
        self.place_category_effect = _levels(rng, places) * 0.3
        self.device_effect = _levels(rng, len(DEVICE_TYPES)) * 0.2
        self.slot_effect = _levels(rng, len(SLOT_SIZES)) * 0.2
        self.country_effect = _levels(rng, len(COUNTRIES)) * 0.3
        self.advertiser_effect = rng.normal(0, 0.3, NUM_ADVERTISERS)
        # Effects of single ids are small: with a handful of rows each, no model could learn large ones.
        self.campaign_effect = rng.normal(0, 0.05, NUM_CAMPAIGNS)
        self.profile_effect = rng.normal(0, 0.04, NUM_PROFILES)
        self.ad_effect = rng.normal(0, 0.04, NUM_ADS)
        self.place_effect = rng.normal(0, 0.05, self.num_places)

    def _bias_for(self, click_rate: float, rng: np.random.Generator) -> float:
        """The bias at which a sample of rows clicks at the wanted rate (bisection)."""
        day = np.arange(20_000) * SECONDS_PER_DAY // 20_000
        logits = self.logits(self.draw(rng, FIRST_TIMESTAMP + day))
        low, high = -20.0, 20.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if sigmoid(logits + middle).mean() < click_rate else (low, middle)
        return low

    def draw(self, rng: np.random.Generator, timestamps: Ints) -> dict[str, Ints]:
        """Draw impressions at the given times; every property is an index (n,) into its table."""
        n = len(timestamps)
        user = self._who_is_there(np.searchsorted(self.user_cdf, rng.random(n)), NUM_USERS)
        profile = user % NUM_PROFILES
        ad = self._who_is_there(np.searchsorted(self.ad_cdf, rng.random(n)), NUM_ADS)
        place = self.place_of_rank[np.searchsorted(self.place_cdf, rng.random(n))]
        ad_kind = ad % NUM_ADS
        campaign = self.ad_campaign[ad_kind]
        advertiser = self.campaign_advertiser[campaign]
        city, model = self.profile_city[profile], self.profile_model[profile]
        hour = (timestamps % SECONDS_PER_DAY) // 3600
        return {
            "timestamp": timestamps, "user": user, "profile": profile, "ad": ad, "ad_kind": ad_kind, "place": place,
            "campaign": campaign, "advertiser": advertiser, "category": self.advertiser_category[advertiser],
            "creative": self.ad_creative[ad_kind], "place_category": self.place_category[place],
            "city": city, "country": self.city_country[city], "gender": self.profile_gender[profile],
            "age": self.profile_age[profile], "model": model, "device": self.model_type[model],
            "system": self.model_system[model], "browser": rng.integers(0, len(BROWSERS), n),
            "connection": rng.integers(0, len(CONNECTIONS), n), "slot": rng.integers(0, len(SLOT_SIZES), n),
            "position": np.minimum(rng.geometric(0.4, n) - 1, NUM_POSITIONS - 1), "hour": hour,
            "weekday": (timestamps - FIRST_TIMESTAMP) // SECONDS_PER_DAY % 7,
            "impressions": np.minimum(rng.pareto(1.1, n) * 2, 500).astype(np.int64),
            "session": np.minimum(rng.lognormal(4.0, 1.5, n), 20_000).astype(np.int64),
        }  # fmt: skip

    def _who_is_there(self, places: Ints, num_places: int) -> Ints:
        """Numbers of the users or ads in these places, popular ones first; every place changes at a time of its own."""
        renewals = np.floor(self.renewals + places * GOLDEN_RATIO % 1).astype(np.int64)
        return places + renewals * (num_places + 1)  # one more, so that a new one has other properties

    def logits(self, row: dict[str, Ints]) -> FloatArray:
        """Compute the log-odds of a click, (n,), of drawn impressions."""
        profile, place, creative = row["profile"], row["place_category"], row["creative"]
        return (
            self.bias
            + ((self._tastes(row) + self.moods(row)) * self.category_appeal[row["category"]]).sum(axis=1)
            + self.device_creative[row["device"], creative]
            + self.daypart_place[row["hour"] // 6, place]
            + self.category_effect[row["category"]]
            + self.place_category_effect[place]
            + self.device_effect[row["device"]]
            + self.slot_effect[row["slot"]]
            + self.country_effect[row["country"]]
            + self.advertiser_effect[row["advertiser"]]
            + self.campaign_effect[row["campaign"]]
            + self.profile_effect[profile]
            + self.ad_effect[row["ad_kind"]]
            + self.place_effect[row["place"]]
            - 0.20 * row["position"]
            - 0.20 * np.log1p(row["impressions"])
            + 0.15 * np.log1p(self.profile_past_clicks[profile])
            + 0.20 * np.sin(2 * np.pi * (row["hour"] - 14) / 24)
            + np.where(row["weekday"] >= 5, 0.1, 0.0)
        )

    def _tastes(self, row: dict[str, Ints]) -> FloatArray:
        """Compute the taste of each user at each place, (n, 2).

        What the log does not tell (a missing age or gender) counts for nothing: the probability is the best guess from
        the row as it is written.
        """
        profile = row["profile"]
        interests = self.profile_interests[profile]
        known = (interests >= 0)[:, :, None]
        tastes = (self.interest_taste[interests] * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        has_gender, has_age = self.profile_is_known[profile].T[:, :, None]
        age_group = np.searchsorted(AGE_LIMITS, row["age"], side="right")
        tastes += self.age_taste[age_group] * has_age + self.gender_taste[row["gender"]] * has_gender
        return tastes + self.place_taste[row["place_category"]]

    def moods(self, row: dict[str, Ints]) -> FloatArray:
        """Compute the users' moods, (n, 2): arrows beside their tastes, a function of user and time alone.

        Each user's mood changes at times of his own, to one that no earlier mood foretells.
        """
        users = row["user"].astype(np.uint64)
        begun = row["timestamp"] / MOOD_SECONDS + _fractions(users, self.mood_seed)
        numbers = (users << np.uint64(20)) + np.floor(begun).astype(np.uint64)
        angles = 2 * np.pi * _fractions(numbers, self.mood_seed + 1)
        return MOOD_STRENGTH * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def to_columns(self, row: dict[str, Ints], rng: np.random.Generator) -> RawColumns:
        """Convert drawn impressions to the log's columns, with labels drawn."""
        # Rounded first and drawn after, so that the column is exactly the probability of the label.
        probability = np.round(sigmoid(self.logits(row)), 6)
        user, profile, place = row["user"], row["profile"], row["place"]
        is_app = place >= NUM_SITES
        has_gender, has_age = self.profile_is_known[profile].T
        return {
            "timestamp": row["timestamp"], "click": (rng.random(len(user)) < probability).astype(np.int64),
            "click_probability": probability, "user_id": _ids("u", user, 7),
            "gender": _optional(np.array(GENDERS, object)[row["gender"]], has_gender),
            "age": _optional(row["age"], has_age), "interests": self._interests_text(profile),
            "country": np.array(COUNTRIES, object)[row["country"]], "city": _ids("city_", row["city"], 3),
            "ad_id": _ids("ad_", row["ad"], 5), "campaign_id": _ids("c", row["campaign"], 4),
            "advertiser_id": _ids("adv_", row["advertiser"], 3),
            "category": np.array(CATEGORIES, object)[row["category"]],
            "creative_type": np.array(CREATIVE_TYPES, object)[row["creative"]], "price": self.ad_price[row["ad_kind"]],
            "site_id": _optional(_ids("s", place, 4), ~is_app), "app_id": _optional(_ids("app_", place, 4), is_app),
            "site_category": np.array(SITE_CATEGORIES, object)[row["place_category"]],
            "slot_size": np.array(SLOT_SIZES, object)[row["slot"]], "position": row["position"],
            "device_model": _ids("m", row["model"], 3), "device_type": np.array(DEVICE_TYPES, object)[row["device"]],
            "os": np.array(SYSTEMS, object)[row["system"]],
            "browser": _optional(np.array(BROWSERS, object)[row["browser"]], ~is_app),
            "connection": np.array(CONNECTIONS, object)[row["connection"]],
            "hour": row["hour"], "weekday": row["weekday"], "impressions_today": row["impressions"],
            "past_clicks": self.profile_past_clicks[profile],
            "session_seconds": _optional(row["session"], rng.random(len(user)) >= 0.05),
        }  # fmt: skip

    def _interests_text(self, profile: Ints) -> NDArray[Any]:
        """Interests joined by "|"; a user without any has a missing value."""
        text = np.full(len(profile), "", object)
        for column in self.profile_interests[profile].T:
            names = np.where(column >= 0, np.array([f"|i{i:02d}" for i in range(NUM_INTERESTS)], object)[column], "")
            text = text + names
        return np.array([t[1:] or None for t in text], object)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Convert logits to probabilities."""
    return 1 / (1 + np.exp(-logits))


def _weights(n: int, exponent: float, offset: int = 0) -> FloatArray:
    """Power-law shares of n ids: the one of rank r has a share in proportion to (r + offset) ** -exponent."""
    weights = 1 / np.arange(1 + offset, n + 1 + offset) ** exponent
    return weights / weights.sum()


def _cdf(shares: FloatArray) -> FloatArray:
    cdf = np.cumsum(shares)
    cdf[-1] = 1.0
    return cdf


def _fractions(numbers: NDArray[np.uint64], seed: int) -> FloatArray:
    """Numbers from 0 to 1, by hash: spread evenly, and the same for the same ones."""
    return mixed(numbers, seed) / 2.0**64


def _arrows(rng: np.random.Generator, n: int) -> FloatArray:
    """n unit vectors (n, 2) in directions spaced evenly around the circle, in random order."""
    angles = 2 * np.pi * (rng.permutation(n) + rng.random()) / n
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _levels(rng: np.random.Generator, n: int) -> FloatArray:
    """n values of mean 0 and standard deviation 1, spaced evenly, in random order."""
    levels = rng.permutation(n) - (n - 1) / 2
    return levels / levels.std()


def _ids(prefix: str, numbers: Ints, width: int) -> NDArray[Any]:
    distinct, inverse = np.unique(numbers, return_inverse=True)
    return np.array([f"{prefix}{i:0{width}d}" for i in distinct], object)[inverse]


def _optional(values: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """The values, with None where absent."""
    optional = values.astype(object)
    optional[~present] = None
    return optional
