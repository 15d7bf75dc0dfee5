"""How much is read of what comes from outside: one table, since what the parts may cost adds up to what a command may
cost. Each is far beyond what is in use, and small enough that a file of it takes seconds and less than 2 GB.

`process` keeps code that is not ours within a limit of time and memory, `yaml_text` counts the values of YAML before
they are made. What a decoder's numbers may be stands beside its kernels (engine/limits.py)."""

JSON_BYTES = 64 << 20  # of a description: the index of the largest models has 10 MB
TOKENIZER_BYTES = 256 << 20  # tokenizer.json; the largest in use have 35 MB
ADDED_TOKENS = 100_000  # to its vocabulary; the most in use are 66,000, of speech
TOKENIZER_SECONDS = 2.0  # of processor time, to read it and to encode a page; beyond, only as long as it is no more
TOKENIZER_SPEED = 4 << 20  # than its bytes at this many a second
TOKENIZER_MEMORY = 1 << 30  # beyond what the process has; the largest in use need 400 MB
YAML_CHARACTERS = 256 << 10  # settings have 5 kB; the parser reads some 100 kB a second
YAML_VALUES = 20_000  # once aliases are written out
NESTING = 100  # lists and objects in one another; Python's stack ends at about 1,000

RECORD_CHARACTERS = 8 << 20  # of one row, one line, one item, one cell: two million tokens
MOST_REJECTED = 100_000  # rows at the beginning of a file that has no other
COLUMNS = 16_384  # what a spreadsheet has
SHEET_ROWS = 1 << 20  # the same
JSON_CHARACTERS = 32 << 20  # of one object that holds all rows, which is in memory as a whole
SAMPLE_CHARACTERS = 4 << 20  # of the first lines, by which a table is recognised
SHEET_CELLS = 32 << 20  # with the empty ones before the last of each row
WORKBOOK_BYTES = 64 << 20  # unpacked; beyond, only as long as it is no more than
WORKBOOK_RATIO = 50  # times as large
UNPACKED_BYTES = 128 << 20  # of a compressed file; beyond, only as long as it is no more than
UNPACKED_RATIO = 250  # times as large: text is 3 to 30 times, and a million times where it says nothing
ROW_BYTES = 1000  # that a row of a packed table counts for at least: rows of nothing take none, but time
BATCH_BYTES = 1 << 30  # that some rows of a packed table may take at once, beyond what the process has

LAYERS = 512  # of a model; the deepest in use have 126
TENSORS = 50_000  # of one file; the most in use are 20,000
EXPERTS = 10_000  # of a layer; the most in use are 512
CLASSES = 100_000  # of a classifier
WIDEST = 1_000_000  # numbers in a layer's output; the widest in use have 65,536
ALPHA = 1e6  # of an adapter; those in use are below 10,000, and updates are scaled by it over the rank
NEW_TOKENS = 1 << 20  # of one answer
UNPICKLED_SECONDS = 3.0  # of processor time, for what torch.save wrote; beyond, only as long as it is no more
UNPICKLED_SPEED = 50 << 20  # than its bytes at this many a second
UNPICKLED_BYTES = 256 << 20  # beyond what the process has, and
UNPICKLED_RATIO = 4  # times as much as the file

TEMPLATE_CHARACTERS = 1 << 20  # of a chat template, and of what it makes of a short conversation; in use are 20,000
RENDER_SECONDS = 2.0  # for one conversation, which takes a tenth of a millisecond
RENDER_BYTES = 768 << 20  # beyond what the process has when it begins

MESSAGES = 1_000  # of one row: each answer is rendered with all before it, so that time grows with the square
RENDERED_CHARACTERS = 128 << 20  # of one row: those of its texts times its answers
COLUMN_TEMPLATE_CHARACTERS = 100_000  # of --prompt and its like; what it makes of a row is a record
COLUMN_TEMPLATE_FIELDS = 1_000  # columns that it names, with those that come again

PATTERN_CHARACTERS = 10_000
PATTERN_SECONDS = 2.0  # for all of an adapter's over all layers of a model, which takes some milliseconds
PATTERN_BYTES = 512 << 20  # beyond what the process has
PATTERNS = 10_000  # of one adapter

REPLY_BYTES = 8 << 20  # of a server that is asked something

REQUEST_BYTES = 4 << 20  # of what a client asks of the server
REQUEST_NESTING = 64  # lists and objects in one another: a schema in a tool in a request has some twenty
REQUEST_SECONDS = 30.0  # until the whole of it has come
SCHEMA_BYTES = 256 << 10  # of a JSON schema or a pattern that an answer has to follow
