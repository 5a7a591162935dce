// @anthropic-ai/sdk: the Messages API, with a loop written by hand.
import { MODEL, PERSON, TOOLS, called, load, pick, schemaOf } from './tools.mjs'

const Anthropic = (await load('@anthropic-ai/sdk')).default

export function clients(url) {
  const client = new Anthropic({ baseURL: url.replace(/\/v1$/, ''), apiKey: 'none', maxRetries: 0 })
  return { 'anthropic-js': (flow, stream) => ask(client, flow, stream) }
}

function listOptions(flow) {
  const options = {
    model: flow.model ?? MODEL, max_tokens: flow.max_tokens ?? 1000, temperature: flow.temperature ?? 0, ...pick(flow, 'system', 'top_p') }
  if (flow.stop) options.stop_sequences = flow.stop
  if (flow.effort) options.output_config = { effort: flow.effort }
  if (flow.schema) options.output_config = { format: { type: 'json_schema', schema: schemaOf(PERSON) } }
  if (flow.tools) {
    options.tools = Object.entries(TOOLS).map(([name, t]) => ({ name, description: t.description, input_schema: schemaOf(t.shape) }))
  }
  if (flow.tool_choice) options.tool_choice = { type: flow.tool_choice }
  return options
}

async function ask(client, flow, stream) {
  const options = listOptions(flow)
  const calls = []
  const messages = []
  let answer
  for (const question of flow.asks) {
    let content = question
    while (content.length) {
      messages.push({ role: 'user', content })
      answer = stream
        ? await client.messages.stream({ ...options, messages }).finalMessage()
        : await client.messages.create({ ...options, messages })
      messages.push({ role: 'assistant', content: answer.content })
      content = answer.content.filter((block) => block.type === 'tool_use').map((block) => (
        { type: 'tool_result', tool_use_id: block.id, content: called(calls, block.name, block.input) }))
    }
  }
  const text = answer.content.filter((block) => block.type === 'text').map((block) => block.text).join('')
  return {
    text,
    reasoning: answer.content.filter((block) => block.type === 'thinking').map((block) => block.thinking).join(''),
    calls,
    data: flow.schema ? JSON.parse(text) : null,
    finish: answer.stop_reason === 'max_tokens' ? 'length' : answer.stop_reason,
    output_tokens: answer.usage.output_tokens,
  }
}
