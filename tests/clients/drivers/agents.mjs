// @openai/agents: its runner over both APIs.
import { MODEL, PERSON, TOOLS, called, load } from './tools.mjs'

const OpenAI = (await load('openai')).default
const agents = await load('@openai/agents')

export function clients(url) {
  agents.setTracingDisabled(true)
  const client = new OpenAI({ baseURL: url, apiKey: 'none', maxRetries: 0 })
  const over = (Model, stored) => (flow, stream) => run(new Model(client, flow.model ?? MODEL), flow, stream, stored)
  return {
    'agents-js responses': over(agents.OpenAIResponsesModel, false),
    'agents-js responses stored': over(agents.OpenAIResponsesModel, true),
    'agents-js chat': over(agents.OpenAIChatCompletionsModel, false),
  }
}

function chooseSettings(flow) {
  const settings = { temperature: flow.temperature ?? 0 }
  if (flow.max_tokens) settings.maxTokens = flow.max_tokens
  if (flow.effort) settings.reasoning = { effort: flow.effort }
  if (flow.top_p) settings.topP = flow.top_p
  if (flow.tool_choice) settings.toolChoice = flow.tool_choice
  if (flow.presence_penalty) settings.presencePenalty = flow.presence_penalty
  if (flow.frequency_penalty) settings.frequencyPenalty = flow.frequency_penalty
  if (flow.stop) settings.providerData = { stop: flow.stop }
  return settings
}

// stored: earlier turns are named by previous_response_id; else they are sent again.
async function run(model, flow, stream, stored) {
  const calls = []
  const tools = flow.tools ? Object.entries(TOOLS).map(([name, t]) => agents.tool({
    name, description: t.description, parameters: t.shape, execute: async (given) => called(calls, name, given) })) : []
  const agent = new agents.Agent({
    name: 'helper', model, instructions: flow.system ?? '', tools, modelSettings: chooseSettings(flow),
    ...(flow.schema ? { outputType: PERSON } : {}),
  })
  const options = { stream }
  let history = []
  let result
  for (const question of flow.asks) {
    history = [...(stored ? [] : history), { role: 'user', content: question }]
    result = await agents.run(agent, history, options)
    if (stream) await result.completed
    history = result.history
    if (stored) options.previousResponseId = result.lastResponseId
  }
  // Of Responses they stand in providerData, as the SDK's own content is the summary.
  const thoughts = result.newItems.filter((item) => item.type === 'reasoning_item').flatMap(({ rawItem }) => (
    rawItem.rawContent ?? rawItem.providerData.content))
  return {
    text: flow.schema ? null : result.finalOutput,
    data: flow.schema ? result.finalOutput : null,
    calls,
    reasoning: thoughts.map((part) => part.text).join(''),
    output_tokens: result.state.usage.outputTokens,
  }
}
