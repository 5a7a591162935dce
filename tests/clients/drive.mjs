// Runs flows with the JavaScript clients: `node drive.mjs URL FLOWS.json PLAN.json`; one JSON line for each result.
// The plan is a list of [client, flow, "whole" or "stream"].
import { readFileSync } from 'node:fs'

const [url, flowsPath, planPath] = process.argv.slice(2)
const { flows } = JSON.parse(readFileSync(flowsPath, 'utf8'))
const plan = JSON.parse(readFileSync(planPath, 'utf8'))

for (const family of ['openai', 'agents', 'ai_sdk', 'anthropic']) {
  const clients = (await import(`./drivers/${family}.mjs`)).clients(url)
  for (const [client, flow, way] of plan) {
    if (!clients[client]) continue
    let got
    try {
      got = await clients[client](flows[flow], way === 'stream')
    } catch (error) {
      got = { error: `${error?.stack ?? error} ${error?.responseBody ?? ''}`.slice(0, 1500) }
    }
    console.log(JSON.stringify({ client, flow, way, ...got }))
  }
}
process.exit(0) // some keep connections open
