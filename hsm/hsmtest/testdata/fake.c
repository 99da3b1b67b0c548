// A PKCS #11 module that fails on command. It hands every call to a real module,
// $FAKE_PKCS11_REAL, unless a file in the folder $FAKE_PKCS11_DIR says otherwise. The file has
// the name of a function without "C_" and holds one command:
//
//   code 0x32 3     the next 3 calls return this code and do nothing (-1: all calls)
//   hang            the call does not return
//   wait            the call goes on when the FIFO of the function's name and ".wait" was opened for reading, then for writing
//   segfault        the call writes to address 0
//   forget          all sessions are closed before the call, as if the token had been taken out and put back; once
//   corrupt         the call flips a bit of its result (Sign, GetAttributeValue)
//   lie 0x10        the call says that its result has this length, or that many elements
//   swap            every other call returns the result of the first one (GetAttributeValue of a point)
//
// Other files: "flags" is OR-ed to the flags of every token; "serial" replaces its serial
// number; "sessions" is how many sessions may be open; "tries" is how many wrong PINs are left, kept
// up to date and shown in the token's flags. Each C_Login is noted in "logins" by one octet, each C_OpenSession in "opened",
// C_Finalize in "finalized", and each function
// that is called in a session while another one is there, in "shared" by a line.
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*call_t)(ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t);

enum {
	FUNCTIONS = 68, FINALIZE = 1, GET_FUNCTION_LIST = 3, SLOT_LIST = 4, TOKEN_INFO = 6, MECHANISM_LIST = 7, OPEN_SESSION = 12, CLOSE_SESSION = 13,
	CLOSE_ALL_SESSIONS = 14, SESSION_INFO = 15, LOGIN = 18,
	GET_ATTRIBUTE = 24, FIND_OBJECTS = 27, DECRYPT = 34, SIGN = 43, GENERATE_PAIR = 59, DERIVE = 62,
};

struct list { unsigned char version[2]; call_t f[FUNCTIONS]; };
struct token_info { char label[32], manufacturer[32], model[16], serial[16]; ulong_t flags; };
struct attribute { ulong_t type; unsigned char *value; ulong_t length; };

static const char *names[FUNCTIONS] = {
	"Initialize", "Finalize", "GetInfo", "GetFunctionList", "GetSlotList", "GetSlotInfo", "GetTokenInfo",
	"GetMechanismList", "GetMechanismInfo", "InitToken", "InitPIN", "SetPIN", "OpenSession", "CloseSession",
	"CloseAllSessions", "GetSessionInfo", "GetOperationState", "SetOperationState", "Login", "Logout",
	"CreateObject", "CopyObject", "DestroyObject", "GetObjectSize", "GetAttributeValue", "SetAttributeValue",
	"FindObjectsInit", "FindObjects", "FindObjectsFinal", "EncryptInit", "Encrypt", "EncryptUpdate",
	"EncryptFinal", "DecryptInit", "Decrypt", "DecryptUpdate", "DecryptFinal", "DigestInit", "Digest",
	"DigestUpdate", "DigestKey", "DigestFinal", "SignInit", "Sign", "SignUpdate", "SignFinal",
	"SignRecoverInit", "SignRecover", "VerifyInit", "Verify", "VerifyUpdate", "VerifyFinal",
	"VerifyRecoverInit", "VerifyRecover", "DigestEncryptUpdate", "DecryptDigestUpdate", "SignEncryptUpdate",
	"DecryptVerifyUpdate", "GenerateKey", "GenerateKeyPair", "WrapKey", "UnwrapKey", "DeriveKey", "SeedRandom",
	"GenerateRandom", "GetFunctionStatus", "CancelFunction", "WaitForSlotEvent",
};

static struct list *real, ours;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long open_sessions;

static void path_of(char *out, size_t n, const char *name) {
	const char *dir = getenv("FAKE_PKCS11_DIR");
	snprintf(out, n, "%s/%s", dir ? dir : "/nonexistent", name);
}

static int read_file(const char *name, char *text, size_t n) {
	char path[4096];
	path_of(path, sizeof path, name);
	FILE *f = fopen(path, "r");
	if (!f) return 0;
	size_t got = fread(text, 1, n - 1, f);
	text[got] = 0;
	fclose(f);
	return got > 0;
}

static void write_file(const char *name, const char *mode, const char *text) {
	char path[4096];
	path_of(path, sizeof path, name);
	FILE *f = fopen(path, mode);
	if (!f) abort();
	fputs(text, f);
	fclose(f);
}

// forget closes all sessions of the token that a session is with.
static void forget(ulong_t session) {
	struct { ulong_t slot, state, flags, error; } info;
	if (real->f[SESSION_INFO](session, (ulong_t)&info, 0, 0, 0, 0, 0, 0) || real->f[CLOSE_ALL_SESSIONS](info.slot, 0, 0, 0, 0, 0, 0, 0)) abort();
	open_sessions = 0;
}

// obey returns 1 if the call is to return *code.
static int obey(int i, ulong_t session, ulong_t *code, int *corrupt) {
	char text[256];
	long left = 0;
	int fail = 0;
	pthread_mutex_lock(&lock);
	if (read_file(names[i], text, sizeof text)) {
		if (!strncmp(text, "hang", 4)) {
			pthread_mutex_unlock(&lock);
			for (;;) pause();
		}
		if (!strncmp(text, "wait", 4)) {
			char fifo[64], path[4096];
			snprintf(fifo, sizeof fifo, "%s.wait", names[i]);
			path_of(path, sizeof path, fifo);
			close(open(path, O_WRONLY));
			close(open(path, O_RDONLY));
		}
		if (!strncmp(text, "segfault", 8)) *(volatile int *)0 = 1;
		if (!strncmp(text, "forget", 6)) {
			forget(session);
			write_file(names[i], "w", "");
		}
		*corrupt = !strncmp(text, "corrupt", 7);
		if (sscanf(text, "code %lx %ld", code, &left) == 2 && left != 0) {
			fail = 1;
			if (left > 0) {
				snprintf(text, sizeof text, "code 0x%lx %ld", *code, left - 1);
				write_file(names[i], "w", text);
			}
		}
	}
	pthread_mutex_unlock(&lock);
	return fail;
}

static long number_in(const char *name, long otherwise) {
	char text[64];
	return read_file(name, text, sizeof text) ? strtol(text, NULL, 0) : otherwise;
}

static void edit_token(struct token_info *t) {
	char text[64];
	long tries = number_in("tries", -1);
	t->flags |= (ulong_t)number_in("flags", 0);
	if (tries == 0) t->flags |= 0x40000;
	if (tries == 1) t->flags |= 0x20000;
	if (tries == 2) t->flags |= 0x10000;
	if (read_file("serial", text, sizeof text)) {
		memset(t->serial, ' ', sizeof t->serial);
		memcpy(t->serial, text, strnlen(text, sizeof t->serial));
	}
}

// note appends an octet to a file.
static void note(const char *name) {
	pthread_mutex_lock(&lock);
	write_file(name, "a", "x");
	pthread_mutex_unlock(&lock);
}

static ulong_t log_in(ulong_t a, ulong_t b, ulong_t c, ulong_t d) {
	char text[32];
	pthread_mutex_lock(&lock);
	long tries = number_in("tries", -1);
	write_file("logins", "a", "x");
	ulong_t code = tries == 0 ? 0xa4 : real->f[LOGIN](a, b, c, d, 0, 0, 0, 0);
	if (tries > 0 && (code == 0 || code == 0xa0)) {
		snprintf(text, sizeof text, "%ld", code ? tries - 1 : 3);
		write_file("tries", "w", text);
	}
	pthread_mutex_unlock(&lock);
	return code;
}

// lie tells a length or a number that is not so.
static void lie(int i, ulong_t told, ulong_t c, ulong_t d, ulong_t e, ulong_t g, ulong_t h) {
	ulong_t *where = NULL;
	switch (i) {
	case SLOT_LIST: case MECHANISM_LIST: where = (ulong_t *)c; break;
	case FIND_OBJECTS: where = (ulong_t *)d; break;
	case SIGN: case DECRYPT: case DERIVE: where = (ulong_t *)e; break;
	case GENERATE_PAIR: *(ulong_t *)g = told; where = (ulong_t *)h; break;
	case GET_ATTRIBUTE:
		for (ulong_t n = 0; n < d; n++) ((struct attribute *)c)[n].length = told;
	}
	if (where) *where = told;
}

// swap gives the point that was asked for first instead of every other one.
static void swap(struct attribute *t, ulong_t n) {
	static unsigned char first[512];
	static ulong_t length, calls;
	for (; n > 0; n--, t++) {
		if (t->type != 0x181 || !t->value || t->length > sizeof first) continue;
		if (length == 0) memcpy(first, t->value, length = t->length);
		if (++calls % 2 == 0 && t->length == length) memcpy(t->value, first, length);
	}
}

// enter notes that a function is in a session, and leave that it is not any more.
static int inside[4096];

static void enter(int i, ulong_t session) {
	int other = __sync_lock_test_and_set(&inside[session % 4096], i);
	if (other) {
		char line[128];
		snprintf(line, sizeof line, "%s and %s\n", names[other], names[i]);
		pthread_mutex_lock(&lock);
		write_file("shared", "a", line);
		pthread_mutex_unlock(&lock);
	}
}

static ulong_t call(int i, ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h);

static ulong_t handle(int i, ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) {
	int in_session = i == CLOSE_SESSION || i > CLOSE_SESSION + 1;
	if (in_session) enter(i, a);
	ulong_t code = call(i, a, b, c, d, e, f, g, h);
	if (in_session) __sync_lock_release(&inside[a % 4096]);
	return code;
}

static ulong_t call(int i, ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) {
	ulong_t code = 0;
	int corrupt = 0;
	if (obey(i, a, &code, &corrupt)) return code;
	if (i == LOGIN) return log_in(a, b, c, d);
	if (i == OPEN_SESSION && __sync_fetch_and_add(&open_sessions, 1) >= number_in("sessions", 1000)) {
		__sync_fetch_and_sub(&open_sessions, 1);
		return 0xb1;
	}
	if (i == OPEN_SESSION) note("opened");
	if (i == FINALIZE) note("finalized");
	if (i == CLOSE_SESSION) __sync_fetch_and_sub(&open_sessions, 1);
	code = real->f[i](a, b, c, d, e, f, g, h);
	if (code) return code;
	char command[64];
	ulong_t told;
	if (read_file(names[i], command, sizeof command)) {
		if (sscanf(command, "lie %lx", &told) == 1) lie(i, told, c, d, e, g, h);
		if (i == GET_ATTRIBUTE && !strncmp(command, "swap", 4)) swap((struct attribute *)c, d);
	}
	if (i == TOKEN_INFO) edit_token((struct token_info *)b);
	if (corrupt && i == SIGN && d) ((unsigned char *)d)[*(ulong_t *)e / 2] ^= 1;
	if (corrupt && i == GET_ATTRIBUTE && d == 1) {
		struct attribute *t = (struct attribute *)c;
		if (t->type == 0x11 && t->value) t->value[t->length / 2] ^= 1;
	}
	return code;
}

#define F(n) static ulong_t f##n(ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) { return handle(n, a, b, c, d, e, f, g, h); }
#define TEN(M, t) M(t##0) M(t##1) M(t##2) M(t##3) M(t##4) M(t##5) M(t##6) M(t##7) M(t##8) M(t##9)
#define ALL(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) TEN(M, 1) TEN(M, 2) TEN(M, 3) TEN(M, 4) TEN(M, 5) M(60) M(61) M(62) M(63) M(64) M(65) M(66) M(67)
ALL(F)
#define A(n) f##n,
static const call_t all[FUNCTIONS] = { ALL(A) };

ulong_t C_GetFunctionList(struct list **out) {
	const char *path = getenv("FAKE_PKCS11_REAL");
	void *library = path ? dlopen(path, RTLD_NOW) : NULL;
	ulong_t (*get)(struct list **) = library ? (ulong_t (*)(struct list **))dlsym(library, "C_GetFunctionList") : NULL;
	if (!get || get(&real)) return 5;
	memcpy(ours.version, real->version, sizeof ours.version);
	memcpy(ours.f, all, sizeof all);
	ours.f[GET_FUNCTION_LIST] = (call_t)C_GetFunctionList;
	*out = &ours;
	return 0;
}
