/*
 * http.c: signed tokens from the hash up. The vectors of the RFCs, every reason
 * for which a token is refused, where a token is found in a request, what a
 * pattern covers, the secret's file, and the throttle.
 */
/* NOLINTNEXTLINE(bugprone-suspicious-include): what is static is tested too */
#include "../http.c"

#include <criterion/criterion.h>

#define SECRET "not so secret, but of 32 bytes or more"
#define HEADER "{\"alg\":\"HS256\",\"typ\":\"JWT\"}"

enum {
    NOW = 1000000, /* seconds since 1970, where a test does not say it */
    TOKEN_ROOM = 2 * SIGNED_TOKEN_MAX,
};

static struct http http = { .max_failures = 3 };
static struct rights rights;

static void begin(void)
{
    hmac_key(slice_of(SECRET), http.secret);
    http.has_secret = true;
}

TestSuite(token, .init = begin);

/* A copy of its own, so that the sanitizer sees a byte read behind it. */
static char *copy(const char *bytes, size_t length)
{
    char *own = malloc(length ? length : 1);

    cr_assert(own);
    return memcpy(own, bytes, length);
}

static const char *verify(struct slice token, uint64_t time)
{
    char *bytes = copy(token.data, token.length);
    const char *why = http_verify_token(
        &http, (struct slice){ bytes, token.length }, time, &rights);

    free(bytes);
    return why;
}

/* A token with the right signature, whatever it is made of. */
static struct slice signed_token(struct slice header, struct slice claims)
{
    static char token[TOKEN_ROOM];
    size_t length = base64_encode(header, token);

    token[length++] = '.';
    length += base64_encode(claims, token + length);
    put_signature(&http, (struct slice){ token, length }, token + length + 1);
    token[length] = '.';
    return (struct slice){ token, length + 1 + SIGNATURE_SIZE };
}

static const char *verdict(const char *header, const char *claims,
                           uint64_t time)
{
    return verify(signed_token(slice_of(header), slice_of(claims)), time);
}

/* Whether the reason is that one; both NULL where there is none. */
static bool is_reason(const char *why, const char *expected)
{
    return why && expected ? strstr(why, expected) && !strchr(why, '\n')
                           : why == expected;
}

/* ------------------------------------------------------------- signatures */

static bool has_digest(const uint8_t digest[SHA256_SIZE], const char *hex)
{
    char text[2 * SHA256_SIZE + 1];

    for (size_t i = 0; i < SHA256_SIZE; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return strcmp(text, hex) == 0;
}

/* RFC 6234, section 8.5, has "abc", the 56 letters and the million; the lengths
 * around those where the padding needs one block more are by another
 * implementation. */
Test(token, hashes_are_those_of_sha256)
{
    static const struct {
        const char *text; /* again and again */
        size_t length;
        const char *digest;
    } rows[] = {
        { "abc", 3,
          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
        { "a", 0,
          "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
        { "a", 1,
          "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" },
        { "a", 55,
          "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318" },
        { "a", 56,
          "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a" },
        { "a", 63,
          "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34" },
        { "a", 64,
          "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb" },
        { "a", 65,
          "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0" },
        { "a", 119,
          "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb" },
        { "a", 120,
          "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c" },
        { "a", 1000000,
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t period = strlen(rows[i].text), length = rows[i].length;
        char *bytes = malloc(length + 1);
        uint8_t digest[SHA256_SIZE];

        cr_assert(bytes);
        for (size_t at = 0; at < length; at++)
            bytes[at] = rows[i].text[at % period];
        for (size_t piece = 1; piece <= 130; piece++) {
            struct sha256 sha = sha256_begun;
            size_t at = 0;

            if (length > 1000 && piece < 129)
                continue; /* the million: in two ways only */
            for (; at + piece < length; at += piece)
                sha256_add(&sha, bytes + at, piece);
            sha256_add(&sha, bytes + at, length - at);
            sha256_end(&sha, digest);
            cr_assert(has_digest(digest, rows[i].digest), "%zu in %zu", length,
                      piece);
        }
        free(bytes);
    }
}

/* RFC 4231, section 4. */
Test(token, macs_are_those_of_hmac_sha256)
{
    static const struct {
        const char *key;
        size_t key_length; /* of one byte, again and again; 0: as it is */
        const char *text;
        size_t text_length; /* likewise */
        const char *mac;
    } rows[] = {
        { "\x0b", 20, "Hi There", 0,
          "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7" },
        { "Jefe", 0, "what do ya want for nothing?", 0,
          "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843" },
        { "\xaa", 20, "\xdd", 50,
          "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe" },
        { "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11"
          "\x12\x13\x14\x15\x16\x17\x18\x19",
          0, "\xcd", 50,
          "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b" },
        { "\xaa", 131, "Test Using Larger Than Block-Size Key - Hash Key First",
          0,
          "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54" },
        { "\xaa", 131,
          "This is a test using a larger than block-size key and a larger than "
          "block-size data. The key needs to be hashed before being used by "
          "the HMAC algorithm.",
          0,
          "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice key = slice_of(rows[i].key);
        struct slice text = slice_of(rows[i].text);
        uint8_t block[SECRET_KEY], mac[SHA256_SIZE];
        char keys[131], texts[50];

        memset(keys, *key.data, sizeof(keys));
        memset(texts, *text.data, sizeof(texts));
        if (rows[i].key_length)
            key = (struct slice){ keys, rows[i].key_length };
        if (rows[i].text_length)
            text = (struct slice){ texts, rows[i].text_length };
        hmac_key(key, block);
        hmac(block, text, mac);
        cr_assert(has_digest(mac, rows[i].mac), "%zu", i);
    }
}

/* RFC 4648, section 10, without the padding; and section 3.5. */
Test(token, base64url_has_one_spelling)
{
    static const struct {
        const char *bytes, *text;
    } rows[] = {
        { "", "" },
        { "f", "Zg" },
        { "fo", "Zm8" },
        { "foo", "Zm9v" },
        { "foob", "Zm9vYg" },
        { "fooba", "Zm9vYmE" },
        { "foobar", "Zm9vYmFy" },
        { "\xFB\xEF\xBE\xFF\xFF\xFF", "----____" },
    };
    static const char *const wrong[] = {
        "Z",    "Zh",   "Zv",   "Zm9",  "Zm8=",  "Zg==",   "Zm9vY",  "Zm 8",
        "Zm8 ", "Zm+v", "Zm/v", "Zm.v", "Zm8\n", "Zm\xC3", "Zm9vYh",
    };
    char result[16];

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice bytes = slice_of(rows[i].bytes);
        char text[16] = { 0 };

        cr_assert(base64_encode(bytes, text) == strlen(rows[i].text));
        cr_assert_str_eq(text, rows[i].text);
        cr_assert(base64_decode(slice_of(text), result) ==
                  (ssize_t)bytes.length);
        cr_assert(memcmp(result, bytes.data, bytes.length) == 0, "%s", text);
    }
    for (size_t i = 0; i < COUNT(wrong); i++)
        cr_assert(base64_decode(slice_of(wrong[i]), result) == -1, "%s",
                  wrong[i]);
}

/* Of all texts of up to three letters, as many are one as there are byte
 * strings. */
Test(token, base64url_has_no_second_spelling)
{
    uint32_t found[4] = { 0 };
    char text[3], bytes[3], again[4];

    for (int a = 0; a < 256; a++) {
        text[0] = (char)a;
        for (int b = 0; b < 256; b++) {
            struct slice two = { text, 2 };

            text[1] = (char)b;
            found[2] += base64_decode(two, bytes) == 1;
            if (base64_decode(two, bytes) < 0)
                continue;
            cr_assert(base64_encode((struct slice){ bytes, 1 }, again) == 2);
            cr_assert(memcmp(again, text, 2) == 0);
        }
        found[1] += base64_decode((struct slice){ text, 1 }, bytes) >= 0;
    }
    cr_assert(found[1] == 0 && found[2] == 256);
}

/* ----------------------------------------------------------------- tokens */

/* RFC 7515, appendix A.1: its key, its token. */
Test(token, the_example_of_the_rfc)
{
    struct slice token = SLICE(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl"
        "LmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjX"
        "k");
    struct slice key = SLICE("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS"
                             "0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow");
    uint8_t bytes[SECRET_KEY];

    cr_assert(is_reason(verify(token, NOW), "signature"));
    cr_assert(base64_decode(key, bytes) == sizeof(bytes));
    hmac_key((struct slice){ (const char *)bytes, sizeof(bytes) }, http.secret);
    cr_assert(verify(token, 1300819380) == NULL);
    cr_assert(rights.expires == 1300819380);
    cr_assert(rights.read.length == 0 && rights.write.length == 0);
    cr_assert(is_reason(verify(token, 1300819441), "expired"));
}

/* In the header: `alg` and what a client must not pass over. */
Test(token, headers)
{
    static const struct {
        const char *header, *reason;
    } rows[] = {
        { HEADER, NULL },
        { " { \"alg\" : \"HS256\" } \r\n", NULL },
        { "{\"\\u0061l\\u0067\":\"HS\\u003256\"}", NULL },
        { "{\"typ\":1,\"cty\":\"JWT\",\"kid\":[{}],\"alg\":\"HS256\"}", NULL },
        { "{}", "no alg" },
        { "{\"typ\":\"JWT\"}", "no alg" },
        { "{\"ALG\":\"HS256\"}", "no alg" },
        { "{\"x\":{\"alg\":\"HS256\"}}", "no alg" },
        { "{\"alg\":\"none\"}", "not HS256" },
        { "{\"alg\":\"\"}", "not HS256" },
        { "{\"alg\":\"hs256\"}", "not HS256" },
        { "{\"alg\":\"HS256\\u0000\"}", "not HS256" },
        { "{\"alg\":\"HS384\"}", "not HS256" },
        { "{\"alg\":\"RS256\"}", "not HS256" },
        { "{\"alg\":null}", "not HS256" },
        { "{\"alg\":[\"HS256\"]}", "not HS256" },
        { "{\"alg\":\"HS256\",\"crit\":[\"exp\"]}", "crit" },
        { "{\"crit\":[],\"alg\":\"HS256\"}", "crit" },
        { "{\"alg\":\"HS256\",\"cr\\u0069t\":null}", "crit" },
        { "{\"alg\":\"HS256\",\"alg\":\"HS256\"}", "twice" },
        { "{\"alg\":\"none\",\"alg\":\"HS256\"}", "not HS256" },
        { "{\"alg\":\"HS256\",\"\\u0061lg\":\"none\"}", "twice" },
        { "{\"alg\":\"HS256\",\"kid\":1,\"kid\":1}", "twice" },
        { "{\"alg\":\"HS256\"}x", "behind" },
        { "{\"alg\":\"HS256\"", "malformed" },
        { "\xEF\xBB\xBF{\"alg\":\"HS256\"}", "no JSON object" },
        { "[\"HS256\"]", "no JSON object" },
        { "\"HS256\"", "no JSON object" },
        { "", "three parts" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *why = verdict(rows[i].header, "{\"exp\":1000000}", NOW);

        cr_assert(is_reason(why, rows[i].reason), "%s: %s", rows[i].header,
                  why);
    }
}

struct claims_row {
    const char *claims, *reason;
};

static void check_claims(const struct claims_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *why = verdict(HEADER, rows[i].claims, NOW);

        cr_assert(is_reason(why, rows[i].reason), "%s: %s", rows[i].claims,
                  why);
    }
}

#define EXP "\"exp\":1000000"
#define WITH(member) "{" EXP "," member "}"
#define NO_TIME "no seconds"
#define NO_LIST "no arrays of strings"

static const struct claims_row times[] = {
    { "{}", "no exp" },
    { "{\"x\":{" EXP "}}", "no exp" },
    { "{\"Exp\":1000000}", "no exp" },
    { "{\"exp\":1000000.0}", NULL },
    { "{\"exp\":1e6}", NULL },
    { "{\"exp\":1E+6}", NULL },
    { "{\"exp\":10000000e-1}", NULL },
    { "{\"exp\":9007199254740991}", NULL },
    { "{\"exp\":9007199254740992}", NO_TIME },
    { "{\"exp\":18446744073709551616}", NO_TIME },
    { "{\"exp\":1e400}", NO_TIME },
    { "{\"exp\":-1}", NO_TIME },
    { "{\"exp\":-1e400}", NO_TIME },
    { "{\"exp\":1e-400}", "expired" },
    { "{\"exp\":\"1000000\"}", NO_TIME },
    { "{\"exp\":null}", NO_TIME },
    { "{\"exp\":true}", NO_TIME },
    { "{\"exp\":[1000000]}", NO_TIME },
    { "{\"exp\":.5}", NO_TIME },
    { "{\"exp\":+1000000}", NO_TIME },
    { "{\"exp\":NaN}", NO_TIME },
    { "{\"exp\":Infinity}", NO_TIME },
    { "{\"exp\":}", NO_TIME },
    { "{\"exp\":-}", "malformed" },
    { "{\"exp\":01000000}", "malformed" },
    { "{\"exp\":1000000.}", "malformed" },
    { "{\"exp\":1000000e}", "malformed" },
    { "{\"exp\":1000000e+}", "malformed" },
    { "{\"exp\":0xF4240}", "malformed" },
    { "{\"exp\":1000000x}", "malformed" },
    { "{\"exp\":1 000000}", "malformed" },
    { "{\"exp\":1000000", "malformed" },
    { WITH("\"nbf\":1000000"), NULL },
    { WITH("\"nbf\":1000061"), "not valid yet" },
    { WITH("\"nbf\":\"1\""), NO_TIME },
    { WITH("\"nbf\":-1"), NO_TIME },
    { WITH("\"nbf\":1e400"), NO_TIME },
    { WITH("\"iat\":-1e400"), NULL },
    { "{" EXP "," EXP "}", "twice" },
    { "{" EXP ",\"e\\u0078p\":1}", "twice" },
    { WITH("\"sub\":\"a\",\"sub\":\"a\""), "twice" },
    { WITH("\"\":1,\"\":2"), "twice" },
    { WITH("\"a\\u0000\":1,\"a\":2"), NULL },
    { WITH("\"x\":{\"a\":1,\"a\":2}"), NULL },
};

Test(token, times_and_names)
{
    check_claims(times, COUNT(times));
}

static const struct claims_row lists[] = {
    { WITH("\"read\":[],\"write\":[ ]"), NULL },
    { WITH("\"read\":[\"a\",\"\"]"), NULL },
    { WITH("\"read\":\"a\""), NO_LIST },
    { WITH("\"read\":\"*\""), NO_LIST },
    { WITH("\"read\":null"), NO_LIST },
    { WITH("\"read\":{}"), NO_LIST },
    { WITH("\"read\":true"), NO_LIST },
    { WITH("\"read\":[1]"), NO_LIST },
    { WITH("\"read\":[\"a\",null]"), NO_LIST },
    { WITH("\"write\":[[\"a\"]]"), NO_LIST },
    { WITH("\"write\":[\"a\",]"), NO_LIST },
    { WITH("\"write\":[,\"a\"]"), NO_LIST },
    { WITH("\"write\":"), NO_LIST },
    { WITH("\"write\":[\"a\" \"b\"]"), "malformed" },
    { WITH("\"write\":[\"a\"}"), "malformed" },
    { "{" EXP ",\"write\":[\"a\"", "malformed" },
    { "{" EXP ",\"write\":[", NO_LIST },
    { WITH("\"read\":[\"a\"],\"read\":[\"b\"]"), "twice" },
    { WITH("\"read\":[\"a\"],\"r\\u0065ad\":[\"b\"]"), "twice" },
};

Test(token, lists_of_patterns)
{
    check_claims(lists, COUNT(lists));
}

static const struct claims_row texts[] = {
    /* the outermost value */
    { "", "three parts" },
    { " ", "no JSON object" },
    { "[]", "no JSON object" },
    { "1", "no JSON object" },
    { "null", "no JSON object" },
    { "\"exp\"", "no JSON object" },
    { "\xEF\xBB\xBF{" EXP "}", "no JSON object" },
    { " \t\r\n{ " EXP " } \t\r\n", NULL },
    { "{" EXP "}}", "behind" },
    { "{" EXP "}{}", "behind" },
    { "{" EXP "},", "behind" },
    { "{" EXP "}\f", "behind" },
    /* members */
    { "{", "malformed" },
    { "{" EXP, "malformed" },
    { "{" EXP ",}", "malformed" },
    { "{," EXP "}", "malformed" },
    { "{" EXP ",,\"a\":1}", "malformed" },
    { "{" EXP " \"a\":1}", "malformed" },
    { "{exp:1}", "malformed" },
    { "{'exp':1}", "malformed" },
    { "{\"exp\" 1}", "malformed" },
    { "{\"exp\"}", "malformed" },
    { "{1:1}", "malformed" },
    { "{/**/" EXP "}", "malformed" },
    /* values that are passed over */
    { WITH("\"a\":[true,false,null,-0,1.5e-3,\"\",{},[],{\"b\":[{}]}]"), NULL },
    { WITH("\"a\":tru"), "malformed" },
    { WITH("\"a\":True"), "malformed" },
    { WITH("\"a\":truex"), "malformed" },
    { WITH("\"a\":undefined"), "malformed" },
    { WITH("\"a\":"), "malformed" },
    { WITH("\"a\":[1,]"), "malformed" },
    { WITH("\"a\":[,1]"), "malformed" },
    { WITH("\"a\":[1 2]"), "malformed" },
    { WITH("\"a\":[1}"), "malformed" },
    { WITH("\"a\":{\"b\":1]"), "malformed" },
    { WITH("\"a\":{\"b\":1,}"), "malformed" },
    { WITH("\"a\":{,}"), "malformed" },
    { WITH("\"a\":{1:2}"), "malformed" },
    { WITH("\"a\":{\"b\"}"), "malformed" },
    { WITH("\"a\":]"), "malformed" },
    { WITH("\"a\":-a"), "malformed" },
    { WITH("\"a\":1.e1"), "malformed" },
    { WITH("\"a\":00"), "malformed" },
    /* strings */
    { WITH("\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\uD83D\\uDE00\""), NULL },
    { WITH("\"a\":\"\x7F \xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80\""), NULL },
    { WITH("\"a\":\"\n\""), "malformed" },
    { WITH("\"a\":\"\t\""), "malformed" },
    { WITH("\"a\":\"\x1F\""), "malformed" },
    { WITH("\"\x01\":1"), "malformed" },
    { WITH("\"a\":\"\\x41\""), "malformed" },
    { WITH("\"a\":\"\\U0041\""), "malformed" },
    { WITH("\"a\":\"\\'\""), "malformed" },
    { WITH("\"a\":\"\\u004\""), "malformed" },
    { WITH("\"a\":\"\\u004G\""), "malformed" },
    { WITH("\"a\":\"\\u 041\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\""), "malformed" },
    { WITH("\"a\":\"\\uD83Dx\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\\n\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\\u0041\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\\uD83D\""), "malformed" },
    { WITH("\"a\":\"\\uDE00\""), "malformed" },
    { WITH("\"a\":\"\\uDE00\\uD83D\""), "malformed" },
    { WITH("\"a\":\"\\uDE00\\uDE00\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\\uDBFF\""), "malformed" },
    { WITH("\"a\":\"\\uD83D\\uE000\""), "malformed" },
    { WITH("\"a\":\"\\uD800\""), "malformed" },
    { WITH("\"a\":\"\\uDFFF\""), "malformed" },
    { WITH("\"a\":\"\\uD7FF\\uE000\\uFFFF\\uD800\\uDC00\\uDBFF\\uDFFF\""),
      NULL },
    { WITH("\"a\":\"\x80\""), "malformed" },
    { WITH("\"a\":\"\xC3\""), "malformed" },
    { WITH("\"a\":\"\xC0\xAF\""), "malformed" },
    { WITH("\"a\":\"\xE0\x80\xAF\""), "malformed" },
    { WITH("\"a\":\"\xED\xA0\xBD\xED\xB8\x80\""), "malformed" },
    { WITH("\"a\":\"\xF4\x90\x80\x80\""), "malformed" },
    { WITH("\"a\":\"\xFF\""), "malformed" },
    { "{" EXP ",\"a", "malformed" },
    { "{" EXP ",\"a\\", "malformed" },
    { "{" EXP ",\"a\\u00", "malformed" },
    { "{" EXP ",\"a\\uD83D\\u", "malformed" },
    { "{" EXP ",\"a\xF0\x9F\x98", "malformed" },
};

Test(token, texts_are_json)
{
    check_claims(texts, COUNT(texts));
}

/* A NUL stands behind the copy that is read; one inside is none of it. */
Test(token, texts_have_no_nul)
{
    static const struct {
        struct slice claims;
        const char *reason;
    } rows[] = {
        { { "{" EXP "}\0", 17 }, "behind" },
        { { "{" EXP "}\0{}", 19 }, "behind" },
        { { "{" EXP "\0}", 17 }, "malformed" },
        { { "{\"e\0xp\":1000000}", 16 }, "malformed" },
        { { "\0{" EXP "}", 17 }, "no JSON object" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *why =
            verify(signed_token(slice_of(HEADER), rows[i].claims), NOW);

        cr_assert(is_reason(why, rows[i].reason), "%zu: %s", i, why);
    }
}

Test(token, bounds_of_json)
{
    char text[8192];
    int length = 0;

    for (unsigned levels = JSON_DEPTH_MAX; levels < 1000; levels *= 13) {
        for (unsigned extra = 0; extra < 2; extra++) {
            unsigned open = levels + extra;

            length = snprintf(text, sizeof(text), "{" EXP ",\"a\":");
            for (unsigned i = 0; i < open; i++)
                length +=
                    snprintf(text + length, 8, "%s", i % 2 ? "{\"a\":" : "[");
            text[length++] = '1';
            for (unsigned i = open; i-- > 0;)
                text[length++] = i % 2 ? '}' : ']';
            text[length++] = '}';
            text[length] = '\0';
            cr_assert(is_reason(verdict(HEADER, text, NOW),
                                open > JSON_DEPTH_MAX ? "levels" : NULL));
        }
    }
    memset(text, '[', 6000);
    memcpy(text, "{\"a\":", 5);
    text[6000] = '\0';
    cr_assert(is_reason(verdict(HEADER, text, NOW), "levels"));
    for (unsigned members = JSON_MEMBERS_MAX; members <= 65; members++) {
        length = snprintf(text, sizeof(text), "{" EXP);
        for (unsigned i = 1; i < members; i++)
            length += snprintf(text + length, 16, ",\"%u\":0", i);
        strcpy(text + length, "}");
        cr_assert(is_reason(verdict(HEADER, text, NOW),
                            members > JSON_MEMBERS_MAX ? "members" : NULL));
    }
}

/* exp and nbf, in seconds and parts of them, with a leeway of 60 s. */
Test(token, leeway)
{
    static const struct {
        const char *claims;
        uint64_t first, last; /* seconds in which it is valid */
    } rows[] = {
        { "{\"exp\":1000}", 0, 1060 },
        { "{\"exp\":1000.5}", 0, 1060 },
        { "{\"exp\":0}", 0, 60 },
        { "{\"exp\":1000,\"nbf\":500}", 440, 1060 },
        { "{\"exp\":1000,\"nbf\":500.5}", 441, 1060 },
        { "{\"exp\":1000,\"nbf\":10}", 0, 1060 },
        { "{\"exp\":1000,\"nbf\":1100}", 1040, 1060 },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *claims = rows[i].claims;

        cr_assert(!verdict(HEADER, claims, rows[i].first), "%s", claims);
        cr_assert(!verdict(HEADER, claims, rows[i].last), "%s", claims);
        cr_assert(
            is_reason(verdict(HEADER, claims, rows[i].last + 1), "expired"));
        cr_assert(rows[i].first == 0 ||
                  is_reason(verdict(HEADER, claims, rows[i].first - 1),
                            "not valid yet"));
        cr_assert(is_reason(verdict(HEADER, claims, UINT64_MAX), "expired"));
    }
    cr_assert(!verdict(HEADER, "{\"exp\":1000.9,\"nbf\":1}", NOW - NOW));
    cr_assert(rights.expires == 1000);
}

Test(token, three_parts)
{
    static const char *const wrong[] = {
        "",     ".",    "..",      "...",    "a",      "a.b",       "a.b.",
        ".b.c", "a..c", "a.b.c.d", "a.b.c.", ".a.b.c", "a.b.c.d.e",
    };
    struct slice token;
    char text[1024];

    for (size_t i = 0; i < COUNT(wrong); i++)
        cr_assert(is_reason(verify(slice_of(wrong[i]), NOW), "three parts"),
                  "%s", wrong[i]);
    cr_assert(is_reason(
        http_verify_token(&http, (struct slice){ NULL, 0 }, NOW, &rights),
        "three parts"));
    token = signed_token(slice_of(HEADER), slice_of("{" EXP "}"));
    cr_assert(!verify(token, NOW));
    for (size_t i = 0; i < 6; i++) {
        static const char *const forms[6] = { "%.*s.", "%.*s ", " %.*s",
                                              "%.*s=", "%.*sA", "%.*sAAAA" };

        snprintf(text, sizeof(text), forms[i], (int)token.length, token.data);
        cr_assert(verify(slice_of(text), NOW) != NULL, "%s", text);
    }
}

/* Each part is checked although its signature is right. */
Test(token, parts_are_base64url)
{
    static const char *const parts[] = {
        "e30=.eyJleHAiOjEwMDAwMDB9", "e31.eyJleHAiOjEwMDAwMDB9",
        "e3.eyJleHAiOjEwMDAwMDB9",   "e30 .eyJleHAiOjEwMDAwMDB9",
        "*.eyJleHAiOjEwMDAwMDB9",
    };
    char token[256];

    for (size_t i = 0; i < COUNT(parts); i++) {
        size_t length = strlen(parts[i]);

        memcpy(token, parts[i], length);
        token[length] = '.';
        put_signature(&http, slice_of(parts[i]), token + length + 1);
        cr_assert(is_reason(verify((struct slice){ token, length + 1 +
                                                              SIGNATURE_SIZE },
                                   NOW),
                            "base64url"),
                  "%s", parts[i]);
    }
}

static struct slice sample(void)
{
    return signed_token(
        slice_of(HEADER),
        slice_of("{\"read\":[\"chat/*\",\"\"],\"write\":[\"jobs\"]," EXP "}"));
}

Test(token, no_part_of_one_is_one)
{
    struct slice token = sample();

    cr_assert(!verify(token, NOW));
    for (size_t length = 0; length < token.length; length++)
        cr_assert(verify((struct slice){ token.data, length }, NOW) != NULL,
                  "%zu", length);
    for (size_t begin = 1; begin <= token.length; begin++)
        cr_assert(verify(slice_from(token, begin), NOW) != NULL, "%zu", begin);
}

Test(token, every_bit_counts)
{
    struct slice token = sample();
    char *bytes = copy(token.data, token.length);

    for (size_t i = 0; i < token.length; i++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] = (char)(token.data[i] ^ 1 << bit);
            cr_assert(verify((struct slice){ bytes, token.length }, NOW) !=
                          NULL,
                      "bit %d of byte %zu", bit, i);
        }
        bytes[i] = token.data[i];
    }
    cr_assert(!verify((struct slice){ bytes, token.length }, NOW));
    free(bytes);
}

/* What is signed so is not looked at, however it is made. */
Test(token, another_secret_signs_nothing)
{
    struct slice token = sample();
    char other[] = SECRET;

    other[0] ^= 1;
    hmac_key(slice_of(other), http.secret);
    cr_assert(is_reason(verify(token, NOW), "signature"));
    token = signed_token(slice_of("{"), slice_of("{"));
    cr_assert(is_reason(verify(token, NOW), "malformed"));
    begin();
    cr_assert(is_reason(verify(token, NOW), "signature"));
}

Test(token, has_8192_bytes_at_most)
{
    char *claims = malloc(TOKEN_ROOM), *token = malloc(TOKEN_ROOM);
    size_t length;

    cr_assert(claims && token);
    for (size_t extra = 0; extra < 2; extra++) {
        size_t size = 6083 + extra;

        memset(claims, ' ', size);
        memcpy(claims, "{" EXP, 14);
        claims[size - 1] = '}';
        length = http_sign(&http, (struct slice){ claims, size }, token,
                           SIGNED_TOKEN_MAX + extra);
        cr_assert(length == SIGNED_TOKEN_MAX + extra);
        cr_assert(is_reason(verify((struct slice){ token, length }, NOW),
                            extra ? "8192" : NULL));
    }
    cr_assert(!http_sign(&http, (struct slice){ claims, 6084 }, token,
                         SIGNED_TOKEN_MAX));
    free(claims);
    free(token);
}

/* Of every length of claims, in a room of just that size. */
Test(token, what_is_signed_is_accepted)
{
    char claims[128], *token;

    for (size_t blanks = 0; blanks < 70; blanks++) {
        struct slice text = { claims, 0 };
        size_t size = 1, length;

        text.length = (size_t)snprintf(claims, sizeof(claims), "{" EXP "%*s}",
                                       (int)blanks, "");
        while (size < 512) {
            token = malloc(size);
            cr_assert(token);
            length = http_sign(&http, text, token, size);
            cr_assert(length == 0 || length == size);
            if (length)
                break;
            free(token);
            size++;
        }
        cr_assert(size < 512);
        cr_assert(!verify((struct slice){ token, size }, NOW));
        free(token);
    }
}

/* --------------------------------------------------------------- patterns */

Test(token, rights_are_what_the_claims_say)
{
    static const struct {
        const char *claims, *topic;
        bool reads, writes;
    } rows[] = {
        { WITH("\"read\":[\"a\"],\"write\":[\"b\"]"), "a", true, false },
        { WITH("\"read\":[\"a\"],\"write\":[\"b\"]"), "b", false, true },
        { WITH("\"read\":[\"a\"],\"write\":[\"b\"]"), "", false, false },
        { WITH("\"write\":[\"b\",\"a\"]"), "a", false, true },
        { WITH("\"read\":[]"), "a", false, false },
        { WITH("\"read\":[]"), "", false, false },
        { WITH("\"read\":[\"\"]"), "", true, false },
        { WITH("\"read\":[\"\\u0061/\\u002a\"]"), "a/b", true, false },
        { WITH("\"read\":[\"x\",\"\",\"y/*\",\"a\"]"), "a", true, false },
        { WITH("\"read\":[\"x\",\"\",\"y/*\",\"a\"]"), "y/z", true, false },
        { WITH("\"read\":[\"x\",\"\",\"y/*\",\"a\"]"), "", true, false },
        { WITH("\"read\":[\"x\\u0000*\"]"), "a", false, false },
        { WITH("\"read\":[\"x\\u0000*\"]"), "x", false, false },
        { WITH("\"read\":[\"\\u0000\"]"), "", false, false },
        { WITH("\"read\":[\"*\\u0000\",\"a\"]"), "a", true, false },
        { WITH("\"read\":[\"*\\u0000\",\"a\"]"), "b", false, false },
        { WITH("\"r\\u0065ad\":[\"a\"]"), "a", true, false },
        { WITH("\"Read\":[\"a\"],\"x\":{\"read\":[\"a\"]}"), "a", false,
          false },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice topic = slice_of(rows[i].topic);

        cr_assert(!verdict(HEADER, rows[i].claims, NOW), "%s", rows[i].claims);
        cr_assert(patterns_cover(rights.read, topic) == rows[i].reads, "%s %s",
                  rows[i].claims, rows[i].topic);
        cr_assert(patterns_cover(rights.write, topic) == rows[i].writes,
                  "%s %s", rows[i].claims, rows[i].topic);
    }
}

/* As many patterns as fit, and the longest. */
Test(token, lists_may_fill_the_token)
{
    char text[CLAIMS_MAX];
    int length = snprintf(text, sizeof(text), "{" EXP ",\"read\":[\"\"");

    while (length < 6000)
        length += snprintf(text + length, 4, ",\"\"");
    snprintf(text + length, 32, ",\"last\"],\"write\":[\"x\"]}");
    cr_assert(!verdict(HEADER, text, NOW));
    cr_assert(patterns_cover(rights.read, SLICE("last")));
    cr_assert(!patterns_cover(rights.read, SLICE("x")));
    cr_assert(patterns_cover(rights.write, SLICE("x")));
    length = snprintf(text, sizeof(text), "{" EXP ",\"write\":[\"");
    memset(text + length, 'y', 6000 - (size_t)length);
    strcpy(text + 6000, "\",\"*\"]}");
    cr_assert(!verdict(HEADER, text, NOW));
    cr_assert(patterns_cover(rights.write, SLICE("x")));
}

Test(token, patterns)
{
    static const struct {
        struct slice patterns;
        const char *topic;
        bool covered;
    } rows[] = {
        { { "", 0 }, "", false },
        { { NULL, 0 }, "a", false },
        { { "\0", 1 }, "", true },
        { { "\0", 1 }, "a", false },
        { { "*\0", 2 }, "", true },
        { { "*\0", 2 }, "a/b/c", true },
        { { "a\0", 2 }, "a", true },
        { { "a\0", 2 }, "", false },
        { { "a\0", 2 }, "A", false },
        { { "a\0", 2 }, "ab", false },
        { { "ab\0", 3 }, "a", false },
        { { "a\0", 2 }, "a/b", false },
        { { "a/*\0", 4 }, "a/b", true },
        { { "a/*\0", 4 }, "a/b/c", true },
        { { "a/*\0", 4 }, "a", false },
        { { "a/*\0", 4 }, "ab", false },
        { { "a/*\0", 4 }, "b/a/c", false },
        { { "a/*\0", 4 }, "", false },
        { { "a/b/*\0", 6 }, "a/b", false },
        { { "a/b/*\0", 6 }, "a/b/c", true },
        { { "a/b/*\0", 6 }, "a/c/b", false },
        { { "a\0b/*\0", 6 }, "b/c", true },
        { { "a\0b/*\0", 6 }, "a/c", false },
        { { "a\0\0", 3 }, "", true },
        /* malformed */
        { { "a*\0", 3 }, "ab", false },
        { { "*a\0", 3 }, "ba", false },
        { { "**\0", 3 }, "a", false },
        { { "/*\0", 3 }, "a", false },
        { { "/*\0", 3 }, "", false },
        { { "*/*\0", 4 }, "a/b", false },
        { { "a/\0", 3 }, "a/b", false },
        { { "/a\0", 3 }, "a", false },
        { { "a/*/c\0", 6 }, "a/b/c", false },
        { { "a/**\0", 5 }, "a/b", false },
        { { "a//*\0", 5 }, "a/b", false },
        { { "a/../*\0", 7 }, "b", false },
        { { " \0", 2 }, "", false },
        { { "?\0", 2 }, "a", false },
    };

    for (size_t i = 0; i < COUNT(rows); i++)
        cr_assert(patterns_cover(rows[i].patterns, slice_of(rows[i].topic)) ==
                      rows[i].covered,
                  "row %zu, %s", i, rows[i].topic);
    cr_assert(patterns_cover(rows[2].patterns, (struct slice){ NULL, 0 }));
    cr_assert(!patterns_cover(rows[6].patterns, (struct slice){ NULL, 0 }));
}

/* --------------------------------------------------- where a token is found */

Test(token, the_first_that_is_there_counts)
{
    static const struct {
        const char *authorization, *cookie, *query, *token; /* NULL: none */
    } rows[] = {
        { NULL, NULL, NULL, NULL },
        { "Bearer a", NULL, NULL, "a" },
        { "bearer a", NULL, NULL, "a" },
        { "BEARER   a", NULL, NULL, "a" },
        { "Bearer a b", NULL, NULL, "a b" },
        { NULL, "ssed_token=a", NULL, "a" },
        { NULL, NULL, "token=a", "a" },
        { "Bearer a", "ssed_token=b", "token=c", "a" },
        { NULL, "ssed_token=b", "token=c", "b" },
        { "Bearer", "ssed_token=b", "token=c", "" },
        { "Bearer ", "ssed_token=b", "token=c", "" },
        { NULL, "ssed_token=", "token=c", "" },
        { NULL, NULL, "token=", "" },
        { NULL, NULL, "token", "" },
        /* another scheme, another cookie, another parameter */
        { "Basic YTpi", "ssed_token=b", "token=c", "b" },
        { "Bearera", NULL, "token=c", "c" },
        { "", NULL, NULL, NULL },
        { NULL, "ssed_tokens=b", NULL, NULL },
        { NULL, "xssed_token=b", NULL, NULL },
        { NULL, "SSED_TOKEN=b", NULL, NULL },
        { NULL, "x=ssed_token=b", NULL, NULL },
        { NULL, NULL, "Token=c&tokens=d&xtoken=e", NULL },
        /* among others; the first of several */
        { NULL, "x=1; ssed_token=b; y=2", NULL, "b" },
        { NULL, "x=\"1\";ssed_token=b;y=2", NULL, "b" },
        { NULL, ";; ssed_token = b ;", NULL, NULL },
        { NULL, "x; ssed_token=b", NULL, "b" },
        { NULL, "ssed_token", "token=c", "" },
        { NULL, "ssed_token=a=b", NULL, "a=b" },
        { NULL, "ssed_token=b; ssed_token=c", NULL, "b" },
        { NULL, "ssed_token=; ssed_token=c", NULL, "" },
        { NULL, "ssed_token=\"b\"", NULL, "b" },
        { NULL, "ssed_token=\"\"", NULL, "" },
        { NULL, "ssed_token=\"", NULL, "\"" },
        { NULL, "ssed_token=\"b", NULL, "\"b" },
        { NULL, NULL, "x=1&token=c&token=d", "c" },
        { NULL, NULL, "token=a%2Eb%2", "a.b%2" },
        { NULL, NULL, "token=a+b", "a b" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request request = { 0 };
        char buffer[SIGNED_TOKEN_MAX + 1];
        struct slice token;
        bool is_there;

        if (rows[i].authorization)
            request.authorization = slice_of(rows[i].authorization);
        if (rows[i].cookie)
            request.cookie = slice_of(rows[i].cookie);
        if (rows[i].query)
            request.query = slice_of(rows[i].query);
        is_there = http_find_token(&request, buffer, &token);
        cr_assert(is_there == (rows[i].token != NULL), "row %zu", i);
        cr_assert(!is_there || slice_is(token, rows[i].token), "row %zu: %.*s",
                  i, (int)token.length, token.data);
    }
}

/* From the bytes of a request. */
Test(token, is_found_in_a_head)
{
    static const struct {
        const char *fields, *token;
    } rows[] = {
        { "Cookie: ssed_token=a", "a" },
        { "cOOKIE:ssed_token=a", "a" },
        { "Cookie: x=1\r\nCookie: ssed_token=a", "q" },
        { "Cookie: ssed_token=a\r\nCookie: ssed_token=b", "a" },
        { "Cookies: ssed_token=a", "q" },
        { "Authorization: bearer b\r\nCookie: ssed_token=a", "b" },
        { "Authorization: Basic b\r\nAuthorization: Bearer c", "q" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        char head[256], buffer[SIGNED_TOKEN_MAX + 1];
        struct request request = { 0 };
        struct slice token;
        int length = snprintf(head, sizeof(head),
                              "GET /events?token=q HTTP/1.1\r\nHost: "
                              "h\r\n%s\r\n\r\n",
                              rows[i].fields);

        cr_assert(http_parse(head, (size_t)length, &request) == length);
        cr_assert(http_find_token(&request, buffer, &token));
        cr_assert(slice_is(token, rows[i].token), "%s", rows[i].fields);
    }
}

/* A query that is longer than the buffer is cut, and what is left of it is a
 * token with one byte too many. */
Test(token, one_that_is_cut_fails)
{
    char *query = malloc(TOKEN_ROOM), buffer[SIGNED_TOKEN_MAX + 1];
    struct request request = { 0 };
    char claims[6083];
    struct slice token;
    size_t length;

    cr_assert(query);
    memset(claims, ' ', sizeof(claims));
    memcpy(claims, "{" EXP, 14);
    claims[sizeof(claims) - 1] = '}';
    memcpy(query, "token=", 6);
    length = http_sign(&http, (struct slice){ claims, sizeof(claims) },
                       query + 6, TOKEN_ROOM - 6);
    request.query = (struct slice){ query, 6 + length };
    cr_assert(http_find_token(&request, buffer, &token));
    cr_assert(!http_verify_token(&http, token, NOW, &rights));
    for (size_t extra = 1; extra < 100; extra++) {
        query[6 + length] = 'A';
        request.query.length++;
        length++;
        cr_assert(http_find_token(&request, buffer, &token));
        cr_assert(token.length == SIGNED_TOKEN_MAX + 1);
        cr_assert(
            is_reason(http_verify_token(&http, token, NOW, &rights), "8192"));
    }
    free(query);
}

/* --------------------------------------------------------- the secret's file
 */

static char secret_path[64];

static void name_secret(void)
{
    begin();
    snprintf(secret_path, sizeof(secret_path), "/tmp/ssed-test-%d.secret",
             getpid());
}

static void remove_secret(void)
{
    unlink(secret_path);
}

TestSuite(secret, .init = name_secret, .fini = remove_secret);

static void write_secret(const char *bytes, size_t length)
{
    FILE *file = fopen(secret_path, "w");

    cr_assert(file && fwrite(bytes, 1, length, file) == length &&
              fclose(file) == 0);
}

/* Each of so many bytes, and then a line end that is not of it. */
Test(secret, is_the_file_without_a_line_end)
{
    static const struct {
        size_t length;
        const char *end, *says; /* NULL: it is one */
    } rows[] = {
        { 0, "", "0 bytes" },
        { 0, "\n", "0 bytes" },
        { 31, "", "31 bytes" },
        { 31, "\n", "31 bytes" },
        { 31, "\r\n", "31 bytes" },
        { 32, "", NULL },
        { 32, "\n", NULL },
        { 32, "\r\n", NULL },
        { 64, "\n", NULL },
        { 65, "\n", NULL },
        { 4096, "", NULL },
        { 4096, "\r\n", NULL },
        { 4097, "", "more than 4096" },
        { 4097, "\n", "more than 4096" },
        { 4098, "\r\n", "more than 4096" },
        { 9000, "", "more than 4096" },
    };
    char bytes[9002], error[ERROR_SIZE];
    uint8_t key[SECRET_KEY];
    mode_t mode;

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)(i * 37 % 251); /* a NUL is the first */
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t length = rows[i].length, rest = strlen(rows[i].end);
        char file[sizeof(bytes)];
        int result;

        memcpy(file, bytes, length);
        memcpy(file + length, rows[i].end, rest);
        write_secret(file, length + rest);
        memcpy(key, http.secret, sizeof(key));
        result = http_load_secret(&http, secret_path, &mode, error);
        cr_assert(result == (rows[i].says ? -1 : 0), "row %zu", i);
        cr_assert(!rows[i].says || strstr(error, rows[i].says), "row %zu: %s",
                  i, error);
        if (!rows[i].says)
            hmac_key((struct slice){ bytes, length }, key);
        cr_assert(memcmp(http.secret, key, sizeof(key)) == 0, "row %zu", i);
    }
}

Test(secret, has_one_line_end_taken_off)
{
    static const char bytes[] = "a secret of 34 bytes, and no less\n\n\r\n";
    char error[ERROR_SIZE];
    uint8_t key[SECRET_KEY];
    mode_t mode = 0;

    write_secret(bytes, sizeof(bytes) - 1);
    cr_assert(chmod(secret_path, 0640) == 0);
    cr_assert(http_load_secret(&http, secret_path, &mode, error) == 0);
    hmac_key((struct slice){ bytes, sizeof(bytes) - 3 }, key);
    cr_assert(memcmp(http.secret, key, sizeof(key)) == 0);
    cr_assert((mode & 0777) == 0640);
}

Test(secret, the_one_before_stays_where_there_is_none)
{
    uint8_t key[SECRET_KEY];
    char error[ERROR_SIZE];
    mode_t mode;

    memcpy(key, http.secret, sizeof(key));
    cr_assert(http_load_secret(&http, secret_path, &mode, error) == -1);
    cr_assert(strstr(error, "No such file"), "%s", error);
    cr_assert(http_load_secret(&http, "/tmp", &mode, error) == -1);
    cr_assert(strstr(error, "not a regular file"), "%s", error);
    cr_assert(mkfifo(secret_path, 0600) == 0);
    cr_assert(http_load_secret(&http, secret_path, &mode, error) == -1);
    cr_assert(strstr(error, "not a regular file"), "%s", error);
    cr_assert(http.has_secret && !memcmp(http.secret, key, sizeof(key)));
    cr_assert(!verify(sample(), NOW));
}

/* --------------------------------------------------------------- throttle */

static struct conn peer(const char *address)
{
    struct conn conn = { 0 };

    if (!address)
        conn.flags = FLAG_UNIX;
    else
        cr_assert(inet_pton(AF_INET6, address, &conn.address) == 1, "%s",
                  address);
    return conn;
}

static unsigned wait_of(const char *address)
{
    struct conn conn = peer(address);

    return http_failure_wait(&http, &conn);
}

static void fail(const char *address, unsigned count)
{
    struct conn conn = peer(address);

    while (count--)
        http_count_failure(&http, &conn);
}

/* Who has failed, and who waits for it. */
Test(throttle, is_for_a_network)
{
    static const struct {
        const char *failed, *asks;
        bool waits;
    } rows[] = {
        { "2001:db8::1", "2001:db8::1", true },
        { "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true },
        { "2001:db8::1", "2001:db8:0:1::1", false },
        { "2001:db8::1", "2001:db9::1", false },
        { "::ffff:192.0.2.1", "::ffff:192.0.2.1", true },
        { "::ffff:192.0.2.1", "::ffff:192.0.2.2", false },
        { "::ffff:192.0.2.1", "::", false },
        { "::2", "::ffff:192.0.2.1", false },
        { "::ffff:127.0.0.1", "::ffff:127.0.0.1", false },
        { "::ffff:127.1.2.3", "::ffff:127.1.2.3", false },
        { "::1", "::1", false },
        { "::1", "::2", false },
        { "::2", "::2", true },
        { "::2", "::1", false },
        { "::2", NULL, false },
        { NULL, NULL, false },
        { NULL, "::", false },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        memset(http.failures, 0, sizeof(http.failures));
        fail(rows[i].failed, 3);
        cr_assert((wait_of(rows[i].asks) > 0) == rows[i].waits, "row %zu", i);
        fail(rows[i].failed, 3);
        cr_assert((wait_of(rows[i].asks) > 0) == rows[i].waits, "row %zu", i);
    }
}

Test(throttle, lasts_until_a_minute_after_the_first)
{
    static const char a[] = "::ffff:192.0.2.1";

    for (http.now = 0; http.now < 200000; http.now += 60000) {
        cr_assert(wait_of(a) == 0);
        fail(a, 1);
        http.now += 10000;
        fail(a, 1);
        cr_assert(wait_of(a) == 0);
        fail(a, 1);
        cr_assert(wait_of(a) == 50);
        http.now += 1;
        cr_assert(wait_of(a) == 50);
        fail(a, 10); /* does not make it longer */
        http.now += 48999;
        cr_assert(wait_of(a) == 1);
        http.now += 999;
        cr_assert(wait_of(a) == 1);
        http.now += 1;
        cr_assert(wait_of(a) == 0);
        fail(a, 2); /* a new minute, a new count */
        cr_assert(wait_of(a) == 0);
        fail(a, 1);
        cr_assert(wait_of(a) == 60);
    }
}

/* A flood from many networks: none waits for another's failures, and one that
 * has failed too often is not let off. */
Test(throttle, does_not_grow_nor_mix_up)
{
    static const char bad[] = "::ffff:198.51.100.1";

    http.now = 5000;
    fail(bad, 3);
    for (unsigned i = 0; i < 200000; i++) {
        struct conn conn = peer("::ffff:10.0.0.0");

        if (i % 2)
            conn = peer("2001:db8::");
        conn.address.s6_addr[i % 2 ? 5 : 13] = (uint8_t)(i >> 16);
        conn.address.s6_addr[i % 2 ? 6 : 14] = (uint8_t)(i >> 8);
        conn.address.s6_addr[i % 2 ? 7 : 15] = (uint8_t)i;
        cr_assert(http_failure_wait(&http, &conn) == 0, "%u", i);
        http_count_failure(&http, &conn);
        cr_assert(http_failure_wait(&http, &conn) == 0, "%u", i);
        cr_assert(wait_of(bad) == 60, "%u", i);
    }
}

/* The networks of a site, and neighbours, spread over the table: at most a few
 * times as many in one set as there would be at random. */
Test(throttle, neighbours_do_not_share_a_set)
{
    static const char *const bases[] = { "2001:db8::", "::ffff:10.0.0.0",
                                         "2a00:1:2:3::" };
    static const unsigned bytes[] = { 7, 15, 1 };

    for (size_t base = 0; base < COUNT(bases); base++) {
        unsigned in_set[FAILURE_SETS] = { 0 }, used = 0;

        for (unsigned i = 0; i < 256; i++) {
            struct conn conn = peer(bases[base]);
            struct in6_addr network;

            conn.address.s6_addr[bytes[base]] = (uint8_t)i;
            network = conn_network(&conn);
            in_set[failure_set(&http, &network)]++;
        }
        for (unsigned i = 0; i < FAILURE_SETS; i++) {
            used += in_set[i] > 0;
            cr_assert(in_set[i] < 12, "%s: %u", bases[base], in_set[i]);
        }
        cr_assert(used > 100, "%s: %u", bases[base], used);
    }
}
