-- Sends the reviews in the folder BODIES in turn. Where a body holds SALT, each request gets a number there:
-- of SALTS different ones, or a new one each time where SALTS is 0. Where EXPECT is set, answers that do not
-- have that reason are counted as odd.
local bodies, count, turn = {}, 0, 0
local salts = tonumber(os.getenv("SALTS") or "0")
for text in io.lines(os.getenv("BODIES") .. "/reviews.jsonl") do
  local at = text:find("SALTSALTSALT", 1, true)
  count = count + 1
  bodies[count] = at and { text:sub(1, at - 1), text:sub(at + 12) } or { text }
end
-- Another run does not repeat the numbers of this one.
local first = salts > 0 and 0 or os.time() % 100000 * 1000000
function request()
  turn = turn + 1
  local body = bodies[turn % count + 1]
  local number = salts > 0 and (turn * 7919) % salts or turn
  local text = body[2] and body[1] .. string.format("%012d", first + number) .. body[2] or body[1]
  return wrk.format("POST", "/mutate", { ["Content-Type"] = "application/json" }, text)
end
odd, odd_reasons = 0, ""
local expect = os.getenv("EXPECT") or ""
if expect ~= "" then
  function response(_, _, body)
    local reason = body:match('"reason":"([^"]*)"') or "none"
    if reason ~= expect then
      odd = odd + 1
      if not odd_reasons:find(reason, 1, true) then odd_reasons = odd_reasons .. "," .. reason end
    end
  end
end
local threads = {}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local odds, reasons = 0, ""
  for _, thread in ipairs(threads) do
    odds, reasons = odds + thread:get("odd"), reasons .. thread:get("odd_reasons")
  end
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %s\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, odds, reasons))
end
