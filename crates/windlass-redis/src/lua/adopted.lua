-- What is left of the deliveries after the claim wakes claims that wait. The end of `adopt`.

for i = 1, #taken do
  local queue = stored[taken[i]]
  if queue and ready[queue] then ready[queue] = ready[queue] - 1 end
end
for queue, amount in pairs(ready) do
  if amount > 0 then ring(queue, amount) end
end
return { adopted, answer, begun }
