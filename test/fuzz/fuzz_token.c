/*
 * Fuzzes signed tokens. The first byte says how the rest is taken: as a token,
 * which is never one, since nobody guesses a signature; or as what is signed: a
 * header and a claims set with a byte of 0xFF between them, the members of a
 * claims set, or the elements of a list in one. A second reader of JSON, which
 * is written in another way, must agree on whether that is a token and on what
 * it allows.
 */
/* NOLINTNEXTLINE(bugprone-suspicious-include): what is static is called too */
#include "../../http.c"

enum {
    NOW = 1000000,
    TEXT_MAX = 20000,
    TOKEN_ROOM = 2 * TEXT_MAX,
};

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* A copy of its own, so that the sanitizer sees a byte read behind it. */
static char *copy(struct slice bytes)
{
    char *own = malloc(bytes.length ? bytes.length : 1);

    check(own != NULL);
    if (bytes.length)
        memcpy(own, bytes.data, bytes.length);
    return own;
}

/* ------------------------------------------------------- the second reader
 *
 * Recursive descent over bytes that stay as they are. What is wrong sets `bad`,
 * and nothing more is read.
 */

struct text_of {
    char bytes[TEXT_MAX];
    size_t length;
};

struct second {
    const uint8_t *at, *end;
    bool bad;
};

/* What it has found in a header or a claims set. */
static struct {
    struct text_of names[JSON_MEMBERS_MAX];
    struct text_of alg, read, write;
    bool has_alg, has_crit, has_exp;
    double exp, nbf;
} found;

static int peek(const struct second *second)
{
    return second->bad || second->at == second->end ? -1 : *second->at;
}

static int next(struct second *second)
{
    int c = peek(second);

    second->bad |= c < 0;
    second->at += c >= 0;
    return c;
}

static int after_blanks(struct second *second)
{
    int c;

    while ((c = peek(second)) == ' ' || c == '\t' || c == '\n' || c == '\r')
        second->at++;
    return c;
}

static void want(struct second *second, int c)
{
    after_blanks(second);
    second->bad |= next(second) != c;
}

/* Adds a character, by the table in RFC 3629, section 3. */
static void add(struct text_of *text, uint32_t c)
{
    char *out = text->bytes + text->length;
    int count = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    if (count == 1) {
        out[0] = (char)c;
    } else {
        for (int i = count - 1; i > 0; i--, c /= 64)
            out[i] = (char)(128 + c % 64);
        out[0] = (char)(256 - (256 >> count) + (int)c);
    }
    text->length += (size_t)count;
}

/* The rest of a sequence that begins with `lead`. */
static uint32_t decode(struct second *second, uint32_t lead)
{
    static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };
    unsigned more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    uint32_t c = lead & (0x3FU >> more);

    second->bad |= lead < 0xC0 || lead > 0xF7;
    for (unsigned i = 0; i < more; i++) {
        int byte = next(second);

        second->bad |= byte < 0x80 || byte > 0xBF;
        c = c * 64 + (uint32_t)(byte & 0x3F);
    }
    second->bad |= c < least[more] || c > 0x10FFFF || c / 0x800 == 0x1B;
    return c;
}

static uint32_t unit(struct second *second)
{
    char digits[5] = { 0 };

    for (int i = 0; i < 4; i++)
        digits[i] = (char)next(second);
    second->bad |= strspn(digits, "0123456789abcdefABCDEF") != 4;
    return second->bad ? 0 : (uint32_t)strtoul(digits, NULL, 16);
}

static uint32_t escaped(struct second *second)
{
    int c = next(second);
    uint32_t high, low;

    switch (c) {
    case '"':
    case '\\':
    case '/':
        return (uint32_t)c;
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        second->bad |= c != 'u';
    }
    high = unit(second);
    if (high / 0x800 != 0x1B)
        return high;
    second->bad |=
        high >= 0xDC00 || next(second) != '\\' || next(second) != 'u';
    low = unit(second);
    second->bad |= low / 0x400 != 0x37;
    return 0x10000 + high % 0x400 * 0x400 + low % 0x400;
}

static void string(struct second *second, struct text_of *text)
{
    text->length = 0;
    want(second, '"');
    while (!second->bad) {
        int c = next(second);

        second->bad |= c < 0x20;
        if (c == '"' || second->bad)
            return;
        add(text, c == '\\'  ? escaped(second)
                  : c < 0x80 ? (uint32_t)c
                             : decode(second, (uint32_t)c));
    }
}

/* A number, by what its bytes are and not by what comes next. */
static double number(struct second *second)
{
    char digits[TEXT_MAX];
    size_t length = 0, at, whole;

    while (peek(second) >= 0 && strchr("0123456789+-.eE", peek(second)))
        digits[length++] = (char)next(second);
    digits[length] = '\0';
    at = digits[0] == '-';
    whole = strspn(digits + at, "0123456789");
    second->bad |= whole == 0 || (whole > 1 && digits[at] == '0');
    at += whole;
    if (digits[at] == '.') {
        whole = strspn(digits + at + 1, "0123456789");
        second->bad |= whole == 0;
        at += 1 + whole;
    }
    if (digits[at] == 'e' || digits[at] == 'E') {
        at += digits[at + 1] == '+' || digits[at + 1] == '-' ? 2 : 1;
        whole = strspn(digits + at, "0123456789");
        second->bad |= whole == 0;
        at += whole;
    }
    second->bad |= at != length;
    return second->bad ? 0 : strtod(digits, NULL);
}

/* NOLINTNEXTLINE(misc-no-recursion): `depth` bounds it */
static void value(struct second *second, unsigned depth)
{
    static struct text_of text;
    int c = after_blanks(second);
    int end = c == '[' ? ']' : '}';
    size_t left = (size_t)(second->end - second->at);

    if (c == '[' || c == '{') {
        second->bad |= ++depth > JSON_DEPTH_MAX;
        next(second);
        if (after_blanks(second) == end) {
            next(second);
            return;
        }
        do {
            if (c == '{') {
                string(second, &text);
                want(second, ':');
            }
            value(second, depth);
        } while (after_blanks(second) == ',' && next(second));
        want(second, end);
    } else if (c == '"') {
        string(second, &text);
    } else if (left >= 4 && (memcmp(second->at, "true", 4) == 0 ||
                             memcmp(second->at, "null", 4) == 0)) {
        second->at += 4;
    } else if (left >= 5 && memcmp(second->at, "false", 5) == 0) {
        second->at += 5;
    } else {
        number(second);
    }
}

static bool is(const struct text_of *text, const char *word)
{
    return text->length == strlen(word) &&
           memcmp(text->bytes, word, text->length) == 0;
}

static double seconds(struct second *second)
{
    double result;

    after_blanks(second);
    result = number(second);
    second->bad |= result < 0 || result >= 9007199254740992.0;
    return result;
}

static void list(struct second *second, struct text_of *patterns)
{
    static struct text_of pattern;

    patterns->length = 0;
    want(second, '[');
    if (after_blanks(second) == ']') {
        next(second);
        return;
    }
    for (;;) {
        string(second, &pattern);
        if (second->bad)
            return;
        if (!memchr(pattern.bytes, 0, pattern.length)) {
            memcpy(patterns->bytes + patterns->length, pattern.bytes,
                   pattern.length);
            patterns->length += pattern.length;
            patterns->bytes[patterns->length++] = '\0';
        }
        if (after_blanks(second) != ',')
            break;
        next(second);
    }
    want(second, ']');
}

static void member(struct second *second, const struct text_of *name,
                   bool is_header)
{
    if (is_header && is(name, "alg")) {
        found.has_alg = true;
        string(second, &found.alg);
    } else if (is_header && is(name, "crit")) {
        second->bad = true;
    } else if (!is_header && is(name, "exp")) {
        found.has_exp = true;
        found.exp = seconds(second);
    } else if (!is_header && is(name, "nbf")) {
        found.nbf = seconds(second);
    } else if (!is_header && is(name, "read")) {
        list(second, &found.read);
    } else if (!is_header && is(name, "write")) {
        list(second, &found.write);
    } else {
        value(second, 0);
    }
}

/* Whether a text is an object that can be a header or a claims set. */
static bool object(struct slice text, bool is_header)
{
    const uint8_t *bytes = (const uint8_t *)text.data;
    struct second second = { bytes, bytes + text.length, false };
    size_t count = 0;

    want(&second, '{');
    if (after_blanks(&second) == '}') {
        next(&second);
    } else {
        do {
            struct text_of *name = &found.names[count];

            if (count++ == JSON_MEMBERS_MAX)
                return false;
            string(&second, name);
            for (size_t i = 0; i + 1 < count; i++)
                second.bad |=
                    found.names[i].length == name->length &&
                    !memcmp(found.names[i].bytes, name->bytes, name->length);
            want(&second, ':');
            if (second.bad)
                return false;
            member(&second, name, is_header);
        } while (after_blanks(&second) == ',' && next(&second));
        want(&second, '}');
    }
    after_blanks(&second);
    return !second.bad && second.at == second.end;
}

static bool is_token(struct slice header, struct slice claims)
{
    found.has_alg = found.has_exp = false;
    found.exp = found.nbf = 0;
    found.read.length = found.write.length = 0;
    return object(header, true) && found.has_alg && is(&found.alg, "HS256") &&
           object(claims, false) && found.has_exp && NOW <= found.exp + 60 &&
           NOW + 60 >= found.nbf;
}

/* ---------------------------------------------------------------- the test */

/* What is base64url comes out the same again. */
static void fuzz_base64(struct slice text)
{
    char *bytes = malloc(text.length + 1), *again = malloc(text.length + 4);
    ssize_t length;

    check(bytes && again);
    length = base64_decode(text, bytes);
    if (length >= 0) {
        check(base64_encode((struct slice){ bytes, (size_t)length }, again) ==
              text.length);
        check(memcmp(again, text.data, text.length) == 0);
    }
    free(bytes);
    free(again);
}

static bool covers(const struct text_of *patterns, const char *topic)
{
    const char *at = patterns->bytes, *end = at + patterns->length;

    for (; at < end; at += strlen(at) + 1) {
        size_t length = strlen(at);

        if (strcmp(at, "*") == 0 || strcmp(at, topic) == 0 ||
            (length > 2 && strcmp(at + length - 2, "/*") == 0 &&
             strncmp(at, topic, length - 1) == 0 && topic[length - 1]))
            return true;
    }
    return false;
}

static void check_list(struct slice patterns, const struct text_of *expected)
{
    static const char *const topics[] = { "", "a", "b", "a/b", "a/b/c" };

    check(patterns.length == expected->length &&
          (!patterns.length ||
           memcmp(patterns.data, expected->bytes, patterns.length) == 0));
    for (size_t i = 0; i < COUNT(topics); i++)
        check(patterns_cover(patterns, slice_of(topics[i])) ==
              covers(expected, topics[i]));
}

static void fuzz_claims(const struct http *http, struct slice header,
                        struct slice claims)
{
    static struct rights rights;
    static char token[TOKEN_ROOM];
    size_t length = base64_encode(header, token);
    const char *why;
    char *own;

    token[length++] = '.';
    length += base64_encode(claims, token + length);
    put_signature(http, (struct slice){ token, length }, token + length + 1);
    token[length] = '.';
    length += 1 + SIGNATURE_SIZE;
    own = copy((struct slice){ token, length });
    why = http_verify_token(http, (struct slice){ own, length }, NOW, &rights);
    free(own);
    check((why == NULL) ==
          (length <= SIGNED_TOKEN_MAX && is_token(header, claims)));
    if (why)
        return;
    check(rights.expires == (uint64_t)found.exp);
    check_list(rights.read, &found.read);
    check_list(rights.write, &found.write);
}

/* Claims whose begin and end are given. */
static void fuzz_inside(const struct http *http, const char *begin,
                        struct slice text, const char *end)
{
    static char claims[TEXT_MAX];
    int length = snprintf(claims, sizeof(claims), "{\"exp\":1000000,%s", begin);
    size_t at = (size_t)length;

    memcpy(claims + at, text.data, text.length);
    strcpy(claims + at + text.length, end);
    fuzz_claims(http, SLICE("{\"alg\":\"HS256\"}"),
                (struct slice){ claims, at + text.length + strlen(end) });
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    static struct http http = { .has_secret = true };
    static struct rights rights;
    struct slice text = { (const char *)input + 1, length - 1 };
    struct slice header;
    char *own;

    if (length < 1 || length > TEXT_MAX / 2)
        return 0;
    switch (input[0] % 4) {
    case 0:
        own = copy(text);
        fuzz_base64((struct slice){ own, text.length });
        check(http_verify_token(&http, (struct slice){ own, text.length }, NOW,
                                &rights) != NULL);
        free(own);
        break;
    case 1:
        header = slice_split(&text, (char)0xFF);
        fuzz_claims(&http, header, text);
        break;
    case 2:
        fuzz_inside(&http, "", text, "}");
        break;
    default:
        fuzz_inside(&http, "\"read\":[", text, "]}");
    }
    return 0;
}
