// The tools of the Responses API that are no functions: how they are declared, and what a client answers to a call.
import { TOOLS, called, schemaOf } from './tools.mjs'

const describe = ([name, tool]) => (
  { type: 'function', name, description: tool.description, parameters: schemaOf(tool.shape), strict: false })
const DECLARED = {
  custom: { type: 'custom', name: 'run_sql', description: 'Runs SQL.' },
  namespace: {
    type: 'namespace', name: 'mcp__weather', description: 'A weather server.', tools: [describe(['get_weather', TOOLS.get_weather])] },
  local_shell: { type: 'local_shell' },
  shell: { type: 'shell' },
  apply_patch: { type: 'apply_patch' },
}
export const RESULTS = { custom: '3 rows', local_shell: 'two files', shell: 'two files', apply_patch: 'done' }

// A flow's `tools`: true for the two functions, else the type.
export const declare = (tools) => (tools === true ? Object.entries(TOOLS).map(describe) : [DECLARED[tools]])

// The item that answers a call, which is noted.
export function answerCall(item, calls) {
  const given = { call_id: item.call_id, type: `${item.type}_output` }
  switch (item.type) {
    case 'custom_tool_call':
      calls.push([item.name, item.input])
      return { ...given, output: RESULTS.custom }
    case 'local_shell_call':
      calls.push(['local_shell', item.action.command])
      return { ...given, id: item.call_id, output: RESULTS.local_shell }
    case 'shell_call':
      calls.push(['shell', item.action.commands])
      return { ...given, output: [{ stdout: RESULTS.shell, stderr: '', outcome: { type: 'exit', exit_code: 0 } }] }
    case 'apply_patch_call':
      calls.push(['apply_patch', item.operation])
      return { ...given, status: 'completed', output: RESULTS.apply_patch }
    default: {
      const output = called(calls, item.name, JSON.parse(item.arguments))
      if (item.namespace) calls.at(-1)[0] = `${item.namespace}.${item.name}`
      return { ...given, output }
    }
  }
}
