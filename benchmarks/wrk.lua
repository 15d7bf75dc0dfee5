-- For wrk (https://github.com/wg/wrk): sends each line of a file once, as the body of a request of its own, and writes
-- the seconds from the first request to the end of the last answer. wrk itself goes on until it is interrupted.

local ffi = require("ffi")
ffi.cdef("struct now { long seconds, microseconds; }; int gettimeofday(struct now *now, void *);")

local bodies, sent, answered, begun = {}, -1, 0, nil -- wrk asks for one request before it begins, and sends it nowhere

local function seconds()
  local now = ffi.new("struct now")
  ffi.C.gettimeofday(now, nil)
  return tonumber(now.seconds) + tonumber(now.microseconds) / 1e6
end

function init(arguments)
  for line in io.lines(arguments[1]) do
    bodies[#bodies + 1] = line
  end
end

function delay()
  return sent < #bodies and 0 or 600000 -- milliseconds: a connection whose answer has ended asks no second time
end

function request()
  sent = sent + 1
  begun = sent == 1 and seconds() or begun
  return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, bodies[math.max(sent, 1)])
end

function response(status, _, body)
  assert(status == 200, body)
  answered = answered + 1
  if answered == #bodies then
    io.write(string.format("all answers in %.4f s\n", seconds() - begun))
    io.flush()
  end
end
